"""The commands as functions of Python; `hf_ssl` shows them under its own name."""

from hf_ssl.commands import analyze as _analyze
from hf_ssl.commands import demo as _demo
from hf_ssl.commands import evaluate as _evaluate
from hf_ssl.commands import extract as _extract
from hf_ssl.commands import finetune as _finetune
from hf_ssl.commands import methods as _methods
from hf_ssl.commands import publish as _publish
from hf_ssl.commands import publish_metric as _publish_metric
from hf_ssl.commands import search as _search
from hf_ssl.commands import simulate as _simulate
from hf_ssl.commands import study as _study
from hf_ssl.commands import views as _views
from hf_ssl.commands.command import python_function, python_group
from hf_ssl.commands.pretrain import pretrain as pretrain

analyze = python_function(_analyze.COMMAND)
evaluate = python_function(_evaluate.COMMAND)
extract_features = python_function(_extract.COMMAND)
fine_tune = python_function(_finetune.COMMAND)
list_methods = python_function(_methods.COMMAND)
open_demo = python_function(_demo.COMMAND)
publish = python_function(_publish.COMMAND)
publish_metric = python_function(_publish_metric.COMMAND)
search = python_function(_search.COMMAND)
simulate = python_group(_simulate.COMMAND)
study = python_group(_study.COMMAND)
views = python_function(_views.COMMAND)
