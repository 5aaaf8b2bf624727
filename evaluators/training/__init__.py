"""Train the quickstart's models: pretrain a small CLIP, fine-tune its image tower per task."""
