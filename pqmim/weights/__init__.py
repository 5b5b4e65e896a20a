"""The weights that ship: ``<fingerprint>.safetensors``; DEFAULT names the one to use."""
