"""Connectionist temporal classification: the loss, its contract and its backends."""

from asr.ctc.contract import ContractError, min_frames
from asr.ctc.loss import CTCLoss, CTCResult, ctc_loss, ctc_loss_result

__all__ = ["CTCLoss", "CTCResult", "ContractError", "ctc_loss", "ctc_loss_result", "min_frames"]
