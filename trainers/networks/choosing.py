"""Which channels, heads or units of a teacher a narrower student takes over: those that together explain most of what all make.

What adds the most power by itself may say what others say already. So they are chosen one after another, each for what those before
leave unexplained: orthogonal matching pursuit by groups (Swirszcz et al., NeurIPS 2009).
"""

import torch
from torch import Tensor

MOST_ROWS = 4096  # frames of speech that are looked at
GROWTH = 16  # of so many that are chosen, one more at once: a thousand would else take a minute
MOST_CHOSEN = 1024  # the rest follow by what each would add next
RIDGE = 1e-3  # of each input's power


def explaining(heard: Tensor, made: Tensor, size: int) -> Tensor:
    """(groups,): numbers of all groups of `size` neighbouring inputs, each after those beside which it explains most.

    heard: (..., groups x size); made: (..., outputs), whose deviations count by their power.
    """
    x_ni, y_no = _rows(heard), _rows(made)
    inputs_gs = torch.arange(x_ni.shape[1], device=x_ni.device).view(-1, size)
    # power of the inputs, then their say in what is made; both without what those chosen explain
    left_iz = x_ni.T @ torch.cat([x_ni, y_no], 1)
    ridge_gs = (RIDGE * left_iz.diagonal() + torch.finfo(left_iz.dtype).tiny)[inputs_gs]
    left_iz.diagonal().add_(ridge_gs.flatten())
    order, waiting = list[Tensor](), torch.ones(len(inputs_gs), dtype=torch.bool, device=x_ni.device)
    while count := int(waiting.sum()):
        gain_g = _gains(left_iz, inputs_gs, ridge_gs).masked_fill(~waiting, -torch.inf)
        chosen = len(waiting) - count
        is_last = chosen >= MOST_CHOSEN
        taken_k = gain_g.topk(count if is_last else min(count, 1 + chosen // GROWTH)).indices
        order.append(taken_k)
        waiting[taken_k] = False
        if not is_last:
            i = inputs_gs[taken_k].flatten()
            left_iz -= left_iz[:, i] @ torch.linalg.solve(left_iz[i][:, i], left_iz[i])
    return torch.cat(order)


def _gains(left_iz: Tensor, inputs_gs: Tensor, ridge_gs: Tensor) -> Tensor:
    """(groups,): power that each would explain next. Of those chosen nothing is left, so a ridge is added."""
    own_gss = left_iz[inputs_gs[:, :, None], inputs_gs[:, None]] + torch.diag_embed(ridge_gs)
    say_gso = left_iz[:, len(left_iz) :][inputs_gs]
    # no `solve`: on a CPU it lets all threads meet once a group, which takes minutes beside a busy neighbour
    gain_g: Tensor = (say_gso * (torch.linalg.inv(own_gss) @ say_gso)).sum((1, 2))
    return gain_g


def _rows(x: Tensor) -> Tensor:
    """(..., channels) -> (rows, channels) of zero mean, at most `MOST_ROWS` of them."""
    rows = x.flatten(0, -2)
    rows = rows[:: -(-len(rows) // MOST_ROWS)].float()
    return rows - rows.mean(0)
