"""`python -m vtx_scale` is `vtx`."""

from vtx_scale.launch.cli import end

if __name__ == "__main__":
    end()
