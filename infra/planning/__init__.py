"""`presto plan`: predict the time, memory and cost of a run on machines that need not exist."""
