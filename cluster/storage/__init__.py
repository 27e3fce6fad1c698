"""Objects elsewhere than in a local folder, each as a `data_pipeline.storage.Storage`.

`pace` says when a request is made and made again, `faults` what its errors mean; `s3` is a bucket,
through boto3, which is imported here alone.
"""
