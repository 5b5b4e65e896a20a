"""What a job would cost, by a file of prices."""
