"""Proof that model files on disk agree with the trained model. Needs neither torch nor pydantic.

Nothing here writes outside the folder it is told, and nothing here passes on doubt.
"""

from job.verify.compare import Comparison
from job.verify.files import Verification, verify_files
from job.verify.fresh import verify_in_fresh_process, verify_staged
from job.verify.published import verify_published
from job.verify.reference import Reference

__all__ = [
    "Comparison",
    "Reference",
    "Verification",
    "verify_files",
    "verify_in_fresh_process",
    "verify_published",
    "verify_staged",
]
