"""Who takes part. A contender is a command that works until it is told to stop; counting is done outside of it."""
