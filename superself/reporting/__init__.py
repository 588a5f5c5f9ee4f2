"""Reports and tables of runs, from the files that runs leave."""
