"""The commands, a module a panel of the help: each reads its arguments, makes one call and prints."""
