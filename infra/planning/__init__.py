"""`presto plan`: what a run will take on machines that need not be there."""
