"""The methods by name. A new one needs its file, an import and an entry here; everything else follows."""

from transformers import AutoConfig, AutoModelForPreTraining

from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.methods.byol import BYOLForPreTraining
from hf_ssl.methods.contrastive_clustering import ContrastiveClusteringForPreTraining
from hf_ssl.methods.directclr import DirectCLRForPreTraining
from hf_ssl.methods.directpred import DirectPredForPreTraining
from hf_ssl.methods.end_to_end import EndToEndForPreTraining
from hf_ssl.methods.memory_bank import MemoryBankForPreTraining
from hf_ssl.methods.mochi import MoCHiForPreTraining
from hf_ssl.methods.moco import MoCoForPreTraining
from hf_ssl.methods.moco_v3 import MoCoV3ForPreTraining
from hf_ssl.methods.simsiam import SimSiamForPreTraining

METHODS: dict[str, type[SSLPreTrainedModel]] = {
    "end_to_end": EndToEndForPreTraining,
    "memory_bank": MemoryBankForPreTraining,
    "moco": MoCoForPreTraining,
    "moco_v3": MoCoV3ForPreTraining,
    "mochi": MoCHiForPreTraining,
    "byol": BYOLForPreTraining,
    "simsiam": SimSiamForPreTraining,
    "directpred": DirectPredForPreTraining,
    "directclr": DirectCLRForPreTraining,
    "contrastive_clustering": ContrastiveClusteringForPreTraining,
}

for _method in METHODS.values():
    AutoConfig.register(_method.config_class.model_type, _method.config_class, exist_ok=True)
    AutoModelForPreTraining.register(_method.config_class, _method, exist_ok=True)
