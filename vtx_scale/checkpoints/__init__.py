"""One format for every strategy and world. Reading order: format, write, read.

    checkpoints/step-00000120/
        data-00000.safetensors   a rank's boxes, entry "KEY#i"
        table-00000.json         [{key, shape, dtype, box, entry}], and the file's size and digest
        manifest.json            step, state of the run, {file: size, sha256} of every file; its own
                                 digest; written last

The folder gets its name when it is whole: without a valid manifest there is no checkpoint.
No pickle anywhere.
"""
