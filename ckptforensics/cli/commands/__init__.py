"""The commands of `ckpt`, one file each."""
