// The terms that the cost model (orbitsplit/cost.hpp) and the planner's bounds are made of.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "orbitsplit/problem.hpp"

namespace orbitsplit {

// Token steps follow the prefill: they need decode times and decode bytes.
inline bool generates(const Problem& problem) { return problem.new_tokens >= 2; }

inline long long group_count(const Problem& problem) {
    return problem.groups.value_or(problem.micro_batches);
}

// Blocks of the arrays of memory and times.
inline std::size_t weight_level_count(const Problem& problem) {
    return std::max<std::size_t>(1, problem.weight_levels.size());
}

// Of a stage at a weight level, in the arrays of times of stages.
inline std::size_t stage_index(const Problem& problem, std::size_t weight_level, std::size_t node) {
    return weight_level * problem.nodes.size() + node;
}

// Of the first layer at a weight level, in the arrays of times of layers.
inline std::size_t time_index(const Problem& problem, std::size_t weight_level, std::size_t node) {
    return stage_index(problem, weight_level, node) * problem.layers.size();
}

// That follow the prefill, on average.
inline double token_steps(const Problem& problem) {
    return static_cast<double>(problem.new_tokens - 1) / problem.tokens_per_step;
}

// Of the micro-batches before the last one, on which the maximum depends.
inline const std::vector<double>& earlier_time_s(const Problem& problem) {
    return problem.layer_earlier_time_s.empty() ? problem.layer_time_s : problem.layer_earlier_time_s;
}

inline double usable_memory_bytes(const ProblemNode& node) { return node.memory_bytes - node.headroom_bytes; }

// Losses are sums of decimal fractions such as 0.1 + 0.2: a sum may exceed its budget by rounding alone.
inline double loss_limit(const Problem& problem) {
    return problem.loss_budget ? *problem.loss_budget * (1 + 1e-9) : std::numeric_limits<double>::infinity();
}

// Occupancy of a link that exists (bandwidth > 0).
inline double link_occupancy_s(const Problem& problem, double compressed_bytes, double bandwidth,
                               double latency_s) {
    const double transmission_s = compressed_bytes / bandwidth;
    return problem.latency_occupies_link ? transmission_s + latency_s : transmission_s;
}

// What a link adds to the sum in addition to its occupancy.
inline double propagation_s(const Problem& problem, double latency_s) {
    return problem.latency_occupies_link ? 0 : latency_s;
}

// Sums and maxima of a plan's occupancies; the sums include propagation, the decode sum also the return.
struct Totals {
    double sum = 0;  // by the last micro-batch
    double max = 0;  // by one before it
    double decode_sum = 0;
    double decode_max = 0;
};

inline double prefill_s(const Problem& problem, const Totals& totals) {
    return totals.sum + static_cast<double>(problem.micro_batches - 1) * totals.max;
}

inline double token_step_s(const Problem& problem, const Totals& totals) {
    const double bottleneck = static_cast<double>(group_count(problem)) * totals.decode_max;
    return totals.decode_sum > bottleneck ? totals.decode_sum : bottleneck;
}

inline double objective_s(const Problem& problem, const Totals& totals) {
    const double prefill = prefill_s(problem, totals);
    if (!generates(problem)) return prefill;
    return prefill + token_steps(problem) * token_step_s(problem, totals);
}

}  // namespace orbitsplit
