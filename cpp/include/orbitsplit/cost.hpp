// How a plan is scored. The one place for the formulas; the planner and the bindings call it.
//
// For M micro-batches through serial resources with occupancy t_i (ingress link, stage, link, stage, ...,
// egress link) and propagation p_j, the prefill takes
//
//     makespan = sum_i t_i + sum_j p_j + (M - 1) * max_i t_i
//
// Stage: compute of its layers + decode_s_per_byte of the level of the cut before it * bytes of that cut
//     + encode_s_per_byte of the level of the cut after it * bytes of that cut.
// Link: bytes / ratio / bandwidth. Ingress and egress carry their bytes uncompressed; one that is absent
//     costs nothing (the data are there, the result stays).
// Half-duplex node: it cannot compute while it transmits, so its outgoing link (or egress) is part of the
//     stage's occupancy and no resource of its own.
// Propagation adds once and occupies nothing. With latency_occupies_link it is part of the occupancy of its
//     link instead (ingress and egress too) and is not added again.
//
// Generation of T = new_tokens tokens with G = groups sequence groups in flight, for T >= 2:
//
//     lap       = sum of decode occupancies + propagation + return
//     step      = max(lap, G * max of decode occupancies)
//     objective = makespan + (T - 1) * step
//
// Decode occupancies are those of stages and links alone, with decode times and decode bytes: ingress and
// egress move the prompt and the result, once. The return is the latency of the link from the last node to
// the first, or, where that link does not exist, the latencies of the links back along the chain; a token's
// bytes are neglected. A plan of one stage returns nothing. T = 1 comes out of the prefill.
//
// The objective of solve() is a choice: the whole latency above, or one of
//
//     time to first token = makespan            time per token = step
//     throughput: the bottleneck, max_i t_i (of decode occupancies for T >= 2): the seconds between two
//         micro-batches, or two groups' tokens, when enough of them are in flight. Smaller is more throughput.
//
// Limits do not depend on it: a plan for T >= 2 must be able to return its tokens, whatever is minimised.
//
// Memory: the layers of a stage need at most memory_bytes - headroom_bytes of its node.
// Loss: adds up over the cuts, at most loss_limit().
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "orbitsplit/problem.hpp"

namespace orbitsplit {

enum class Objective { latency, throughput, time_to_first_token, time_per_token };

inline constexpr int no_level = -1;

// Consecutive layers [start, stop) on one node; level is that of the cut after them, no_level on the last
// stage.
struct Stage {
    int node = 0;
    int start = 0;
    int stop = 0;
    int level = no_level;

    bool operator==(const Stage&) const = default;
};

struct Evaluation {
    double objective_s = 0;
    double prefill_s = 0;     // the makespan
    double token_step_s = 0;  // 0 unless the problem generates, as are the decode fields below
    double lap_s = 0;
    double bottleneck_s = 0;
    double return_s = 0;
    double loss = 0;
    double latency_s = 0;  // propagation added to the prefill; 0 with latency_occupies_link
    double ingress_s = 0;
    double egress_s = 0;
    std::vector<double> stage_s;  // occupancies; a half-duplex stage's contains its outgoing link's
    std::vector<double> link_s;   // link k joins stage k to stage k + 1
    std::vector<double> decode_stage_s;
    std::vector<double> decode_link_s;
    std::vector<double> stage_memory_bytes;
    bool is_feasible = true;
    std::vector<std::string> violations;  // one sentence per broken limit
};

inline double usable_memory_bytes(const ProblemNode& node) { return node.memory_bytes - node.headroom_bytes; }

// Losses are sums of decimal fractions such as 0.1 + 0.2: a sum may exceed its budget by rounding alone.
inline double loss_limit(const Problem& problem) {
    return problem.loss_budget ? *problem.loss_budget * (1 + 1e-9) : std::numeric_limits<double>::infinity();
}

// Occupancy of a link that exists (bandwidth > 0).
inline double link_occupancy_s(const Problem& problem, double compressed_bytes, double bandwidth,
                               double latency_s) {
    const double sending = compressed_bytes / bandwidth;
    return problem.latency_occupies_link ? sending + latency_s : sending;
}

// What a link adds to the sum beside its occupancy.
inline double propagation_s(const Problem& problem, double latency_s) {
    return problem.latency_occupies_link ? 0 : latency_s;
}

// Sums and maxima of a plan's occupancies; sums contain propagation, the decode sum the return.
struct Totals {
    double sum = 0;
    double max = 0;
    double decode_sum = 0;
    double decode_max = 0;
};

inline double prefill_s(const Problem& problem, const Totals& totals) {
    return totals.sum + static_cast<double>(problem.micro_batches - 1) * totals.max;
}

inline double token_step_s(const Problem& problem, const Totals& totals) {
    const double busiest = static_cast<double>(group_count(problem)) * totals.decode_max;
    return totals.decode_sum > busiest ? totals.decode_sum : busiest;
}

inline double objective_s(const Problem& problem, const Totals& totals) {
    const double prefill = prefill_s(problem, totals);
    if (!generates(problem)) return prefill;
    return prefill + static_cast<double>(problem.new_tokens - 1) * token_step_s(problem, totals);
}

// What solve() minimises for an objective, of a plan that evaluate() scored.
inline double value_s(const Evaluation& score, Objective objective) {
    switch (objective) {
        case Objective::throughput:
            return score.bottleneck_s;
        case Objective::time_to_first_token:
            return score.prefill_s;
        case Objective::time_per_token:
            return score.token_step_s;
        case Objective::latency:
            break;
    }
    return score.objective_s;
}

// Scores a plan of a valid problem. A plan that breaks limits is scored too (infinite where a link is
// missing); stages that are no plan (gaps, a node twice, wrong order, a level that does not exist) throw
// std::invalid_argument.
Evaluation evaluate(const Problem& problem, const std::vector<Stage>& stages);

}  // namespace orbitsplit
