"""blockfold: fold near-affine blocks of a trained network into single matrices."""
