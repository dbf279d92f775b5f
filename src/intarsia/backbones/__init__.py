"""theta0: pre-trained networks, how they are loaded, and how they want their images."""
