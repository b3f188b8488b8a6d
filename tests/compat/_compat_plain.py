"""The peers' losses restated in a few lines of plain PyTorch; nothing is shared with sslops."""

import torch
import torch.nn.functional as F


def nt_xent(out0, out1, temperature):
    z = F.normalize(torch.cat([out0, out1]), dim=1)
    B = len(out0)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * B, dtype=torch.bool), float("-inf"))
    return F.cross_entropy(logits, (torch.arange(2 * B) + B) % (2 * B))


def moco(query, key, queue, temperature, normalize=True):
    if normalize:
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    positive = (query * key).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, query @ queue.to(query.dtype).T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


def clip(image, text, scale):
    logits, own = scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip(image, text, scale, bias):
    sign = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / len(image)


def info_nce(query, keys, negatives, temperature, reduction, mode):
    query, keys = F.normalize(query, dim=1), F.normalize(keys, dim=1)
    if negatives is None:
        logits, target = query @ keys.T, torch.arange(len(query))
    else:
        negatives = F.normalize(negatives, dim=-1)
        unpaired = mode == "unpaired"
        far = query @ negatives.T if unpaired else (query[:, None] * negatives).sum(dim=2)
        logits = torch.cat([(query * keys).sum(dim=1, keepdim=True), far], dim=1)
        target = torch.zeros(len(query), dtype=torch.int64)
    return F.cross_entropy(logits / temperature, target, reduction=reduction)


def solo_simclr(z, indexes, temperature):
    z = F.normalize(z, dim=1)
    e = (z @ z.T / temperature).exp()
    same = indexes[:, None] == indexes
    positive = (e * (same & ~torch.eye(len(z), dtype=torch.bool))).sum(dim=1)
    return -(positive / (positive + (e * ~same).sum(dim=1))).log().mean()


def masks(labels, key_labels=None, own=None):
    """(positive, negative) [M, N]; without key labels a row does not see itself."""
    if key_labels is None:
        key_labels, own = labels, torch.arange(len(labels))
    positive = labels[:, None] == key_labels
    negative = ~positive
    if own is not None:
        positive[torch.arange(len(labels)), own] = False
    return positive, negative


def pairwise_nt_xent(queries, keys, positive, negative, temperature):
    s = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    losses = [
        torch.logsumexp(torch.cat([s[a, p, None], s[a][negative[a]]]), dim=0) - s[a, p]
        for a, p in positive.nonzero().tolist()
    ]
    return torch.stack(losses).mean()


def sup_con(queries, keys, positive, negative, temperature):
    s = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    losses = [
        torch.logsumexp(row[p | n], dim=0) - row[p].mean()
        for row, p, n in zip(s, positive, negative, strict=True)
        if p.any()
    ]
    return torch.stack(losses).mean()


def ranking(embeddings, scale, normalize, directions, mode):
    """Multiple negatives ranking, by a double loop over rows and candidates."""
    if normalize:
        embeddings = [F.normalize(each, dim=1) for each in embeddings]
    queries, *docs = embeddings
    losses = []
    for i, (query, doc) in enumerate(zip(queries, docs[0], strict=True)):
        terms = {name: [] for name in directions}
        for j in range(len(queries)):
            terms["query_to_doc"] += [query @ column[j] for column in docs]
            if "query_to_query" in directions and j != i:
                terms["query_to_query"].append(query @ queries[j])
            if "doc_to_query" in directions:
                terms["doc_to_query"].append(doc @ queries[j])
            if "doc_to_doc" in directions and j != i:
                terms["doc_to_doc"] += [doc @ column[j] for column in docs]
        groups = list(terms.values())
        if mode == "joint":
            groups = [[each for group in groups for each in group]]
        log_z = [torch.logsumexp(scale * torch.stack(group), dim=0) for group in groups]
        losses.append(sum(log_z) / len(log_z) - scale * (query @ doc))
    return torch.stack(losses).mean()
