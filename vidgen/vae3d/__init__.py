"""The spacetime VAE: video to latents and back, causal in time."""
