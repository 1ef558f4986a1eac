"""The bundled demo: a small vision transformer, its images, and the script that made them."""
