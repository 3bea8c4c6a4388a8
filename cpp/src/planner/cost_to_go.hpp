// Cost-to-go: lower bounds on what a partial plan still costs.
//
// A relaxation is a backward dynamic programme over (visited set, boundary, vertex) in which a node may repeat unless
// it is in the ng-set (Baldacci et al., Operations Research 2011; here one set for all nodes) or remembered by the
// vertex. A visited set holds the nodes of the ng-set with a stage and, where max_nodes limits plans, the number of
// stages. For a metric, a limit on every single resource's weight in the maximum and a Lagrange multiplier on the loss
// it gives
//
//     h(state) = min over completions whose resources all respect the limit of (sum + multiplier * loss)
//
// Let a plan's relaxed maximum be the largest weight that the relaxation's own tests see in it (what opens and closes
// a stage counts with its least value), so that relaxed maximum <= true maximum. Divide the range of relaxed maxima
// into intervals (low_g, high_g]. A plan in interval g that extends a label of sum s, maximum v and loss l has a
// completion of relaxed maximum <= high_g, loss <= budget - l and true maximum >= max(v, low_g). Hence for every
// multiplier >= 0
//
//     objective >= s + [h_{g,multiplier}(state) - multiplier * (budget - l)] + max(v, low_g)
//
// The smallest of these over the intervals bounds every extension. An interval whose bound at the root reaches the
// incumbent holds no better plan and is fathomed.
#pragma once

#include <limits>
#include <vector>

#include "planner/tables.hpp"
#include "support/time_limit.hpp"
#include "support/uninitialised.hpp"

namespace orbitsplit::planner {

struct Relaxation {
    double limit = 0;
    double multiplier = 0;
    double root = 0;  // h of the whole problem
    UninitialisedVector<double>
        to_go_departed;  // h after the stage that ends at a boundary on a vertex, by state()
    UninitialisedVector<double> to_go_arrived;  // h before the stage that starts there
};

inline std::size_t state(const Tables& t, unsigned visited, int boundary, int vertex) {
    return (static_cast<std::size_t>(visited) * t.vertices() + vertex) * (t.layers + 1) + boundary;
}

// The visited set after one more stage.
inline unsigned with_node(const Tables& t, unsigned visited, int node) {
    const unsigned used = t.ng_bit[node] < 0 ? 0 : 1u << t.ng_bit[node];
    return (visited | used) + t.count_step;
}

inline bool has_visited(const Tables& t, unsigned visited, int node) {
    return t.ng_bit[node] >= 0 && (visited >> t.ng_bit[node] & 1u) != 0;
}

// Whether a visited set rules out a stage on the node.
inline bool is_blocked(const Tables& t, unsigned visited, int node) {
    return has_visited(t, visited, node) || visited >> t.ng_size >= t.most_stages;
}

// Weight of a stage in the sum, or infinity where the limit forbids it.
inline double stage_weight(const Tables& t, const Metric& m, double limit, int lane, int node, int start,
                           int stop) {
    const int first = t.lane_boundary(lane, start);
    const int last = t.lane_boundary(lane, stop);
    const double busy = m.compute_max[last] - m.start_max[first];
    if (busy + m.open_max[start] + m.close_max[t.boundary_node(stop, node)] > limit)
        return std::numeric_limits<double>::infinity();
    return m.compute_sum[last] - m.start_sum[first];
}

// Weight of encoding, sending over a link and decoding, or infinity where the limit forbids it.
inline double transfer_weight(const Tables& t, const Metric& m, double limit, int source, int link,
                              int index) {
    const double busy = m.compressed_max[index] * t.s_per_byte[link] + m.latency_max * t.latency[link];
    const double encode = m.encode_max[index];
    if (t.half_duplex[source] ? encode + busy > limit : (encode > limit || busy > limit))
        return std::numeric_limits<double>::infinity();
    return m.compressed_sum[index] * t.s_per_byte[link] + m.latency_sum * t.latency[link] + m.code_sum[index];
}

// The weight of reaching a chain's first node, or infinity.
inline double start_weight(const Tables& t, const Metric& m, double limit, int node) {
    if (t.start_vertex[node] < 0 || !t.can_start[node] || m.ingress_max[node] > limit)
        return std::numeric_limits<double>::infinity();
    return m.ingress_sum[node];
}

// A relaxation's value from a node on, or infinity.
inline double start_value(const Tables& t, const Metric& m, const Relaxation& r, int node) {
    const double weight = start_weight(t, m, r.limit, node);
    if (weight == std::numeric_limits<double>::infinity()) return std::numeric_limits<double>::infinity();
    return weight + r.to_go_arrived[state(t, with_node(t, 0, node), 0, t.start_vertex[node])];
}

// The metric that counts nothing: what is left is the loss.
Metric without_time(const Tables& t);

// A relaxation whose bounds are all 0 if it must end early, by a request or the time limit: they hold. `spare` may be one
// that is no longer needed: its memory is used again, because new memory takes as long as the relaxation.
Relaxation relax(const Tables& t, const Metric& metric, double limit, double multiplier,
                 const TimeLimit& time_limit, Relaxation spare = {});

// By vertex: the least (sum + multiplier * loss) of any relaxed plan through it. All 0 if it must end early.
std::vector<double> bounds_through(const Tables& t, const Metric& metric, const Relaxation& relaxation,
                                   const TimeLimit& time_limit);

// The relaxation whose only cost is loss: the least loss of any completion.
Relaxation least_loss(const Tables& t, const TimeLimit& time_limit);

}  // namespace orbitsplit::planner
