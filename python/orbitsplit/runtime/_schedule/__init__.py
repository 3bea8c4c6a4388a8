"""The schedule: which stage sends what, and when. It knows neither processes nor sockets.

The rows of a batch run through the chain of stages in groups (micro-batches). Each group has its own KV cache and runs
independently, so that one group is computed while another is on a link: prefill keeps the chain full, and a group
starts to decode as soon as its first token has returned, without a barrier. Groups may start and end at any time. A
group of one row may send guesses of the next tokens with a token, of which those are kept that turn out to be right.
Prompts may run in chunks, one behind the other: the steps of a group are numbered as `Group` says. Steps of several
groups of one row each may share a message, and a forward on each stage (a pack).

    first_stage    starts groups, owns their tokens, sends the next step when a token returns
    follower       other stages: process what arrives; the last stage turns logits into tokens for the first
    protocol       messages, and what a stage of the schedule needs of others

Every message answers an earlier one, except those of a prompt. A group has the chunks of its prompt in flight,
or one further step, and every stage keeps what it has sent of them. When one arrives corrupted, the stage passes
CORRUPTED down the chain and ignores the steps behind the missing one, until the first stage has sent all of them again,
and so has every stage that they reach, up to the one that missed it. Nothing is computed twice, so caches are the same
to the last bit. In the same way FAILED reports that a stage raised an error for a group, which ends that group alone.
A pack is sent again as a whole; no other message waits for it.
"""
