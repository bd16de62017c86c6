"""Why non-contrastive learning does not collapse, and contrastive learning does in part: the theory as simulators."""

from hf_ssl.dynamics.dimensional_collapse import ContrastiveToy, collapsed_dimensions, contrastive_spreads
from hf_ssl.dynamics.eigenmodes import EigenmodeFlow
from hf_ssl.dynamics.last_layers import Descent, LastLayers, Terms, descend
from hf_ssl.dynamics.linear_network import LinearNetworkFlow, Weights
from hf_ssl.dynamics.prediction import Prediction, TrainingSetting, predict_training

__all__ = [
    "ContrastiveToy",
    "Descent",
    "EigenmodeFlow",
    "LastLayers",
    "LinearNetworkFlow",
    "Prediction",
    "Terms",
    "TrainingSetting",
    "Weights",
    "collapsed_dimensions",
    "contrastive_spreads",
    "descend",
    "predict_training",
]
