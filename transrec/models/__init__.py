"""Item encoders, user encoders, training objectives, and a uniform view of all transformers among them."""
