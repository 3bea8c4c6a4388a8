// Cost-to-go: lower bounds on what a partial plan still costs, and the plans that attain them.
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

#include <vector>

#include "planner/tables.hpp"
#include "support/time_limit.hpp"

namespace orbitsplit::planner {

struct Relaxation {
    double limit = 0;
    double multiplier = 0;
    double root = 0;                     // h of the whole problem
    std::vector<double> to_go_departed;  // h after the stage that ends at a boundary on a vertex, by state()
    std::vector<double> to_go_arrived;   // h before the stage that starts there
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

// A relaxation whose bounds are all 0 if it must end early, by a request or the time limit: they hold.
Relaxation relax(const Tables& t, const Metric& metric, double limit, double multiplier,
                 const TimeLimit& time_limit);

// By vertex: the least (sum + multiplier * loss) of any relaxed plan through it. All 0 if it must end early.
std::vector<double> bounds_through(const Tables& t, const Metric& metric, const Relaxation& relaxation,
                                   const TimeLimit& time_limit);

// The relaxation whose only cost is loss: the least loss of any completion.
Relaxation least_loss(const Tables& t, const TimeLimit& time_limit);

struct Walk {
    bool is_complete = false;
    double loss = 0;
    std::vector<Stage> stages;
};

// Follows a relaxation's choices from the root: the relaxed optimum, in which nodes outside the ng-set may repeat.
Walk relaxed_optimum(const Tables& t, const Metric& metric, const Relaxation& relaxation);

// The same without repeating a node or exceeding the loss budget, as far as the least loss to go tells.
Walk diving_heuristic(const Tables& t, const Metric& metric, const Relaxation& relaxation,
                      const Relaxation& least);

// The diving heuristic along the least loss, whatever the time.
Walk diving_heuristic_for_loss(const Tables& t, const Relaxation& least);

}  // namespace orbitsplit::planner
