"""Schemes that transfer the teacher's layers rather than its outputs.

===================  =================================================================================================
`knowledge_flow`     the teachers' layers are mixed into the student, with a share that falls to 0
`dependence_loss`    objective that penalizes the share of the teachers
`report_dependence`  metrics of that share
`few_sample`         least squares for each layer, merged into the student's kernels (FSKD)
`FewSampleLayer`     names of one such layer
===================  =================================================================================================
"""

from jaxkd.schemes.transfer._few_sample import FewSampleLayer, few_sample
from jaxkd.schemes.transfer._knowledge_flow import dependence_loss, knowledge_flow, report_dependence

__all__ = ["FewSampleLayer", "dependence_loss", "few_sample", "knowledge_flow", "report_dependence"]
