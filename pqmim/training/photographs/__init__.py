"""Both stages of training from photographs: the same loop on two cores and on a large GPU."""
