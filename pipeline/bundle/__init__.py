"""What ships with a deploy form. A model and options enter; README, test vectors and variants leave."""
