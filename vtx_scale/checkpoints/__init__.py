"""One format for every strategy and world. Reading order: format, tensor_file, staging, write,
read; lease; placement, memory.

    checkpoints/step-00000120/
        data-00000.e7.safetensors   a rank's boxes, entry "KEY#i"
        table-00000.e7.json         [{key, shape, dtype, box, entry}], the file's size and digest
        manifest.json               step, state of the run, {file: size, sha256} of every file; its
                                    own digest; put last, and where there is none

A checkpoint is there when its manifest is: a folder without one is none, and is cleared by whoever
holds the run folder's lease. e7 is the lease's epoch: a writer that lost it overwrites nothing.
Format 1 had no epochs, and is read as it was. Files are objects of a `Storage`. No pickle anywhere.
"""
