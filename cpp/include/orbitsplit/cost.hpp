// The cost model: how a plan is scored. The one place for the formulas; the planner and the bindings use them.
//
// For M micro-batches through serial resources with occupancy t_i (ingress link, stage, link, stage, ...,
// egress link) and propagation p_j, the prefill takes
//
//     makespan = sum_i t_i + sum_j p_j + (M - 1) * max_i t'_i
//
// where t_i is the occupancy by the last micro-batch and t'_i the mean of those by the micro-batches before it. They
// differ in the compute of the stages alone, by layer_time_s and layer_earlier_time_s; without the latter t' is t. If
// t'_i <= t_i for all i, micro-batches that take just these seconds end no later than that, and exactly then if
// t'_i = t_i for all i before the largest t'. With M = 1, t' has no weight.
//
// Stage: compute of its layers + stage_overhead_s of its node (t and t' alike; in token steps layer_decode_time_s and
//     stage_decode_overhead_s) + decode_s_per_byte of the level of the cut before it * bytes of that cut
//     + encode_s_per_byte of the level of the cut after it * bytes of that cut.
// Link: bytes / ratio / bandwidth. Ingress and egress carry their bytes uncompressed; one that is absent
//     costs nothing (the input is already on the node, the result stays there).
// Half-duplex node: it cannot compute while it transmits, so its outgoing link (or egress) is part of the
//     stage's occupancy and no resource of its own.
// Propagation adds once and occupies nothing. With latency_occupies_link it is part of the occupancy of its
//     link instead (ingress and egress too) and is not added again.
//
// Generation of T = new_tokens tokens with G = groups sequence groups in flight, for T >= 2, if a step gives each
// sequence A = tokens_per_step tokens on average:
//
//     round trip = sum of decode occupancies + propagation + return
//     step       = max(round trip, G * max of decode occupancies)
//     objective  = makespan + (T - 1) / A * step
//
// Decode occupancies are those of stages and links only, with decode times and decode bytes: ingress and
// egress move the prompt and the result, once. A token returns by the quicker of two ways, where they exist:
// the latency of the link from the last node to the first, or the latencies of the links back along the chain;
// the bytes of a token are neglected. A plan of one stage has no return. The prefill yields the first token, so
// T = 1 needs no token step.
//
// solve() minimises one of four objectives: the total latency above, or
//
//     time to first token = makespan            time per token = step / A
//     throughput: the bottleneck, max_i t'_i (of decode occupancies / A for T >= 2): the seconds between two
//         micro-batches, or between the tokens of two groups, when enough of them are in flight. Smaller means
//         more throughput.
//
// Limits do not depend on the objective: a plan for T >= 2 must be able to return its tokens in any case.
//
// Memory: the layers of a stage need at most memory_bytes - headroom_bytes of its node.
// Loss: adds up over the cuts and, with weight levels, over the layers; the sum is at most the budget (and a relative
// 1e-9 for rounding). A cut whose level has an infinite loss does not have the level, nor has such a layer its weight
// level: no budget allows it.
// Weight levels: memory, times and losses of a stage's layers are those of its weight level.
#pragma once

#include <string>
#include <vector>

#include "orbitsplit/export.hpp"
#include "orbitsplit/problem.hpp"

namespace orbitsplit {

enum class Objective { latency, throughput, time_to_first_token, time_per_token };

inline constexpr int no_level = -1;

// Consecutive layers [start, stop) on one node; level is that of the cut after them, no_level on the last
// stage; weight_level is no_level in a problem without weight levels.
struct Stage {
    int node = 0;
    int start = 0;
    int stop = 0;
    int level = no_level;
    int weight_level = no_level;

    bool operator==(const Stage&) const = default;
};

struct Evaluation {
    double objective_s = 0;
    double prefill_s = 0;        // the makespan
    double token_step_s = 0;     // 0 unless new_tokens >= 2, as are the decode fields below
    double round_trip_s = 0;     // of a token through all stages, its return included
    double tokens_per_step = 1;  // A; 1 unless new_tokens >= 2
    double bottleneck_s = 0;
    double return_s = 0;
    double loss = 0;
    double weight_loss = 0;  // the part of the loss that is of weights
    double latency_s = 0;    // propagation in the prefill; 0 with latency_occupies_link
    double ingress_s = 0;
    double egress_s = 0;
    std::vector<double> stage_s;  // occupancies; that of a half-duplex stage includes its outgoing link
    std::vector<double> earlier_stage_s;  // by a micro-batch before the last; empty if all are alike
    std::vector<double> link_s;           // link k joins stage k to stage k + 1
    std::vector<double> decode_stage_s;
    std::vector<double> decode_link_s;
    std::vector<double> stage_memory_bytes;
    bool is_feasible = true;
    std::vector<std::string> violations;  // one sentence per violated limit
};

// The objective's value of a plan that evaluate() scored.
inline double value_s(const Evaluation& score, Objective objective) {
    switch (objective) {
        case Objective::throughput:
            return score.bottleneck_s / score.tokens_per_step;
        case Objective::time_to_first_token:
            return score.prefill_s;
        case Objective::time_per_token:
            return score.token_step_s / score.tokens_per_step;
        case Objective::latency:
            break;
    }
    return score.objective_s;
}

// Scores a plan of a valid problem. A plan that violates limits is scored too (infinite where a link is missing).
// Throws std::invalid_argument for stages that are not a plan: gaps, a node twice, wrong order, a level that does
// not exist.
ORBITSPLIT_API Evaluation evaluate(const Problem& problem, const std::vector<Stage>& stages);
ORBITSPLIT_API Evaluation evaluate(const PreparedProblem& problem, const std::vector<Stage>& stages);

}  // namespace orbitsplit
