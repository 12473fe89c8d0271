"""What stands below each figure of the report: what it shows, exactly, and how to read it. Braces are filled in by `format`."""

CAPTIONS = {
    "loss": (
        "Cross entropy in nats per token; lower is better, and the logarithm of the vocabulary's size is where guessing starts. "
        "Held-out lines are documents that training never saw, by source: a training line that goes on falling while they rise "
        "is memorisation. Every point is one step: where the run has more steps than fit, the smallest and the largest of each "
        "stretch stay, so no spike is hidden."
    ),
    "training": (
        "What the optimizer did at each step. A jump of the gradient norm often goes with a spike of the loss; a load-balancing "
        "loss of 1 means that experts are used evenly."
    ),
    "evaluations": (
        "One small chart per task, each with its own scale, by the metric named above it (accuracy: larger is better; bits and "
        "losses: smaller)."
    ),
    "norms": (
        "L2 norm of all weights of a kind together, each with its own scale. Norms usually grow until weight decay holds them; "
        "one that explodes, or falls to nothing, is a layer in trouble."
    ),
    "change": (
        "Norm of the difference to the checkpoint before, over the norm before. Checkpoints need not be equally far apart, so a "
        "jump can also be a longer way; towards the end of training, as the learning rate falls, lines should fall."
    ),
    "load": (
        "Share of the assignments of {tokens} held-out tokens that each expert gets, over the even share of 1/{experts}. The "
        "middle colour is an expert used evenly; orange ones are used more, blue ones less. {unused}"
    ),
    "busiest": "The most used expert of each layer. A layer whose line grows without end is collapsing onto few experts.",
    "mass": (
        "What the router gives to the chosen experts together, meaned over tokens: near 1 the choice is sure, at the dashed line "
        "it is a guess."
    ),
    "saturation": (
        "Of the {top_k} experts chosen for a token at a checkpoint, the share that the last checkpoint also chooses. 1 at the "
        "end by definition; the dashed line is what routing by chance would give. A layer that is high early has settled early."
    ),
    "saturation_top_1": (
        "The same of the most probable expert alone: how often the router's first choice is already the final one."
    ),
    "coactivation": (
        "At {checkpoint}: of the tokens that go to the expert of a row, the share that also go to the expert of a column; by "
        "chance it is {chance}. Strong colours are experts that work together; a row of one weak colour is an expert without "
        "company of its own."
    ),
    "pairs": (
        "Mean share of the {pairs} strongest pairs of each layer. Near the dashed line no two experts belong together; near 1 "
        "some could be one."
    ),
    "sources": (
        "How often an expert is chosen for the tokens of a source, over how often it would be if all were chosen alike. Orange: "
        "the expert prefers the source; blue: it avoids it. Rows that look the same mean that the layer does not tell the "
        "sources apart.{single}"
    ),
    "sources_single": " There is one source only, so this shows the load of the experts and nothing more.",
    "sources_over": (
        "Mean distance of the shares from the even share, in units of it, meaned over layers: 0 is generic. The line dealt by "
        "chance is what uneven load and few tokens show even where routers do not know the sources: only what stands above it "
        "counts."
    ),
    "tokens_input": (
        "Share of a token's occurrences whose first choice is the token's most frequent expert, meaned over tokens: 1 would be "
        "one expert per word."
    ),
    "tokens_predicted": (
        "The same by the token that the model holds most probable next: where this is higher, a layer routes by what comes "
        "rather than by what is there."
    ),
    "tokens": (
        "Experts whose tokens go to them most faithfully, and those tokens, at {checkpoint}: the number is the share of the "
        "token's occurrences that have this expert as their first choice. Only ids seen at least {min_count} times count. "
        "\N{MIDDLE DOT} is a blank, \N{DOWNWARDS ARROW WITH CORNER LEFTWARDS} the end of a line."
    ),
    "texts": (
        "Minus the log-probability of the text, meaned over its tokens: how surprised each checkpoint is. A text that falls far "
        "below the held-out loss was learned, as a pattern or by heart."
    ),
    "text": (
        "Each token in the colour of its probability at the chosen checkpoint (without a choice: {checkpoint}), given an end of "
        "text and all tokens before it. Point at a token, or go there with the arrow keys, for its probability and its rank "
        "among all ids."
    ),
}
