"""What `vtx data` does: each a function over folders of tars."""
