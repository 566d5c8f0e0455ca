-- ARGV ids -> {views, outlook}
return {views(ARGV), outlook()}
