"""The commands, one module per panel of the help. A command reads its arguments, makes one call and prints."""
