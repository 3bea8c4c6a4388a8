#include "planner/root_k_cycle.hpp"

#include <algorithm>
#include <utility>

#include "planner/order_search.hpp"
#include "planner/root_bisection.hpp"

namespace orbitsplit::planner {

namespace {

constexpr double widest = 0.03;  // width of intervals relative to the incumbent, at first
constexpr double narrowest = 1e-3;
constexpr std::size_t least_relaxations = 24;  // that must fit the memory

// Whether the relaxed plan that gives the lowest bound repeats a node.
bool lowest_repeats(const Tables& t, const Root& root) {
    for (std::size_t a = 0; a < t.metrics.size(); ++a) {
        const auto lowest =
            std::min_element(root.intervals[a].begin(), root.intervals[a].end(),
                             [](const Interval& x, const Interval& y) { return x.bound < y.bound; });
        if (lowest == root.intervals[a].end() || lowest->relaxations.empty()) continue;
        std::vector<char> is_used(t.nodes, 0);
        for (const Stage& stage : relaxed_optimum(t, t.metrics[a], *lowest->relaxations.front()).stages) {
            if (is_used[stage.node]) return true;
            is_used[stage.node] = 1;
        }
    }
    return false;
}

bool is_affordable(const Tables& t, double links, std::size_t max_bytes) {
    const double states = links * t.visited_sets * (t.layers + 1);
    return states * (t.layers / 4.0 + 1) <= thorough_operations &&
           states * 2 * sizeof(double) * least_relaxations <= static_cast<double>(max_bytes);
}

}  // namespace

Root explore_root_k_cycle(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                          Tables& t, Relaxation& least, Incumbent incumbent) {
    const std::size_t max_bytes = options.max_bytes / 2;
    Root root;
    double proven = 0;
    double width = widest;
    while (true) {
        root = bisect_root(problem, t, options.objective, least, time_limit, std::move(incumbent), width,
                           max_bytes);
        proven = root.lower_bound_s = std::max(proven, root.lower_bound_s);
        if (!time_limit.is_reached()) improve_by_chains(problem, options, time_limit, root.incumbent);
        if (time_limit.is_reached() || root.incumbent.stages.empty() || proven >= root.incumbent.cutoff())
            return root;
        const std::vector<char> is_kept = promising_vertices(t, root, time_limit);
        const int stages = static_cast<int>(std::min<unsigned>(t.most_stages, std::min(t.nodes, t.layers)));
        if (t.k_cycle < stages && lowest_repeats(t, root) &&
            is_affordable(t, extended_link_count(t, is_kept), max_bytes)) {
            extend_vertices(is_kept, t);
            least = least_loss(t, time_limit);
        } else if (width > narrowest) {
            width = std::max(narrowest, width / 4);
        } else {
            return root;
        }
        incumbent = std::move(root.incumbent);
    }
}

}  // namespace orbitsplit::planner
