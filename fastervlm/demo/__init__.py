"""The demo: a question about a picture, answered with all visual tokens and with a few, side by side in a browser."""
