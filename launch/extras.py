"""What one machine does not need is installed by those who use it. Standard library alone."""

from importlib.util import find_spec

from vtx_scale.data_pipeline.errors import UserError

EXTRAS = {
    "ray": "cluster",
    "boto3": "s3",
    "deepspeed": "deepspeed",
    "fairscale": "fairscale",
    "huggingface_hub": "hub",
    "wandb": "wandb",
    "mlflow": "mlflow",
}


def need(package: str, for_this: str) -> None:
    """Raises UserError where a package is not installed, with the command that installs it.

    for_this: the command, place or key that needs it.
    """
    if find_spec(package) is None:
        raise UserError(
            f"{for_this} needs {package}, which is not installed: "
            f"pip install 'vtx-scale[{EXTRAS[package]}]'."
        )
