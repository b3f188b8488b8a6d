"""What frozen features are worth: nearest neighbours, linear probes, few labels, clusters."""

from sslops.training.evaluate.evaluator import evaluate
from sslops.training.evaluate.factors import factor_table
from sslops.training.evaluate.features import extract
from sslops.training.evaluate.knn import knn_accuracy
from sslops.training.evaluate.stages import stage_table
from sslops.training.evaluate.table import table
from sslops.training.evaluate.tsne import tsne

__all__ = ["evaluate", "extract", "factor_table", "knn_accuracy", "stage_table", "table", "tsne"]
