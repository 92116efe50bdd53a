"""Item encoders, the SASRec user encoder, training objectives, and one view of every transformer among them."""
