"""Pictures that look like photographs, of the same codes: what the decoder averages away."""
