"""Schemes that transfer the teacher's layers rather than its outputs."""

from jaxkd.schemes.transfer._few_sample import FewSampleLayer, few_sample
from jaxkd.schemes.transfer._knowledge_flow import dependence_loss, knowledge_flow, report_dependence

__all__ = ["FewSampleLayer", "dependence_loss", "few_sample", "knowledge_flow", "report_dependence"]
