"""Show why pretraining without labels does or does not collapse: theory beside simulation.

    hf-ssl simulate phase_portrait --etas 0 0.05 0.17
    hf-ssl simulate collapse --noises 0 1 2 --depths 1 2 3 4

Each writes figures and a JSON file of the numbers. The theory is that of Tian et al. (2021, arXiv 2102.06810), for
`collapse` that of Jing et al. (2021, arXiv 2110.09348).
"""

from hf_ssl.commands.command import Command, CommandGroup
from hf_ssl.studies.simulations import collapse, flow, phase_portrait, sweep

COMMAND = CommandGroup(
    "simulate",
    __doc__ or "",
    {
        "phase_portrait": Command(
            "simulate phase_portrait",
            phase_portrait.PhasePortraitSettings,
            phase_portrait.run,
            phase_portrait.__doc__ or "",
        ),
        "flow": Command("simulate flow", flow.FlowSettings, flow.run, flow.__doc__ or ""),
        "sweep": Command("simulate sweep", sweep.SweepSettings, sweep.run, sweep.__doc__ or ""),
        "collapse": Command("simulate collapse", collapse.CollapseSettings, collapse.run, collapse.__doc__ or ""),
    },
)
