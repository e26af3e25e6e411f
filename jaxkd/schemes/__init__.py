"""Schemes: who teaches whom, and when. Each returns the same `Distiller` that `jaxkd.distill` does.

=============================  =============================================================================
`jaxkd.distill`                offline: a trained, frozen teacher
`jaxkd.schemes.online`         `online`: the teacher trains on the data and the student on both, in one step
`jaxkd.schemes.mutual`         `mutual`: peers teach each other (DML)
`jaxkd.schemes.diverse_peers`  `diverse_peers`: attention over peers, and a leader (OKDDip)
`jaxkd.schemes.branches`       `branches`: branches of a trunk and their gated ensemble (ONE)
`jaxkd.schemes.collaborative`  `collaborative`: an ensemble chosen by the labels teaches its members (KDCL)
`jaxkd.schemes.staged`         one objective after another: initialise on a feature, then train on the task
`jaxkd.schemes.relay`          one distillation after another, each with what the earlier ones trained
`jaxkd.schemes.knowledge_flow` teachers' layers mixed into the student until it runs alone: `knowledge_flow`,
                               `dependence_loss`, `report_dependence`
`jaxkd.schemes.be_your_own_teacher`  `byot`: the last layer teaches exits at the taps, with `exit_head`
`jaxkd.schemes.class_wise`     `class_wise`: examples of one class agree (CS-KD)
`jaxkd.schemes.two_views`      `two_views`: two distortions of an example agree (DDGSD)
`jaxkd.schemes.data_free`      `data_free`: a student of images that are made from the teacher alone
`jaxkd.schemes.synthesis`      who makes them: `dafl`, `inversion`, `cmi`, each a `Synthesis`; `given` for real ones
`jaxkd.schemes.lifelong`       task after task: `learning_without_forgetting`, and `lifelong` with any objective
`jaxkd.schemes.retrospection`  `retrospection`: an expert for each new task, then both teachers
`jaxkd.schemes.heads`          what the terms of a task read: `told_by_labels`, `held_to_old`, `taught_new`; which
                               classes compete: `task_heads`, `two_heads`, `single_head`
`jaxkd.schemes.few_sample`     least squares for each layer, folded into the student (FSKD): `few_sample`,
                               `FewSampleLayer`
`jaxkd.schemes.assistants`     a chain of networks between teacher and student (TAKD): `assistants`, `chains`,
                               `best_chain`
`jaxkd.schemes.born_again`     generations of one architecture, each taught by the one before, and their ensemble
=============================  =============================================================================
"""

from jaxkd.schemes.assistants import assistants, best_chain, chains
from jaxkd.schemes.be_your_own_teacher import byot, exit_head
from jaxkd.schemes.born_again import born_again
from jaxkd.schemes.branches import branches
from jaxkd.schemes.class_wise import class_wise
from jaxkd.schemes.collaborative import collaborative
from jaxkd.schemes.data_free import data_free
from jaxkd.schemes.diverse_peers import diverse_peers
from jaxkd.schemes.few_sample import FewSampleLayer, few_sample
from jaxkd.schemes.heads import held_to_old, single_head, task_heads, taught_new, told_by_labels, two_heads
from jaxkd.schemes.knowledge_flow import dependence_loss, knowledge_flow, report_dependence
from jaxkd.schemes.lifelong import learning_without_forgetting, lifelong
from jaxkd.schemes.mutual import mutual
from jaxkd.schemes.online import online
from jaxkd.schemes.ramp import ramp_up
from jaxkd.schemes.relay import Leg, handed, relay
from jaxkd.schemes.retrospection import retrospection
from jaxkd.schemes.staged import Stage, staged
from jaxkd.schemes.synthesis import Synthesis, cmi, dafl, given, inversion
from jaxkd.schemes.two_views import two_views

__all__ = [
    "FewSampleLayer",
    "Leg",
    "Stage",
    "Synthesis",
    "assistants",
    "best_chain",
    "born_again",
    "branches",
    "byot",
    "chains",
    "class_wise",
    "cmi",
    "collaborative",
    "dafl",
    "data_free",
    "dependence_loss",
    "diverse_peers",
    "exit_head",
    "few_sample",
    "given",
    "handed",
    "held_to_old",
    "inversion",
    "knowledge_flow",
    "learning_without_forgetting",
    "lifelong",
    "mutual",
    "online",
    "ramp_up",
    "relay",
    "report_dependence",
    "retrospection",
    "single_head",
    "staged",
    "task_heads",
    "taught_new",
    "told_by_labels",
    "two_heads",
    "two_views",
]
