#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "planner/cost.hpp"
#include "planner/infeasible.hpp"
#include "planner/node_classes.hpp"
#include "planner/options.hpp"
#include "planner/order_search.hpp"
#include "planner/root.hpp"
#include "planner/root_bisection.hpp"
#include "planner/root_k_cycle.hpp"
#include "planner/search.hpp"
#include "support/pool.hpp"
#include "support/text.hpp"
#include "support/time_limit.hpp"

namespace orbitsplit {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double most_transfers = 2e8;  // layers x links in free order: a relaxation takes a second or more
// With the label's share of the heap and the states, and of the capacity they reserve.
constexpr std::size_t label_bytes = 300;
constexpr std::size_t most_labels = std::numeric_limits<std::int32_t>::max();

std::size_t link_count(const Problem& problem) {
    const std::vector<double>& bandwidth = problem.bandwidth_bytes_per_s;
    return static_cast<std::size_t>(std::count_if(bandwidth.begin(), bandwidth.end(),
                                                  [](double bytes_per_s) { return bytes_per_s > 0; }));
}

void check(const Problem& problem, const planner::Options& options) {
    if (!(options.time_limit_s >= 0)) {
        throw std::invalid_argument("time_limit_s is " + text::number(options.time_limit_s) +
                                    ", must be at least 0");
    }
    if (options.max_labels < 1 || options.max_labels > most_labels) {
        throw std::invalid_argument("max_labels is " + std::to_string(options.max_labels) +
                                    ", must be from 1 to " + std::to_string(most_labels));
    }
    if (options.max_bytes < 1) throw std::invalid_argument("max_bytes is 0, must be at least 1");
    if (options.max_ng_size < 0 || options.max_bitset_nodes < 0 || options.max_bitset_nodes > 64) {
        throw std::invalid_argument("max_ng_size is " + std::to_string(options.max_ng_size) +
                                    " and max_bitset_nodes " + std::to_string(options.max_bitset_nodes) +
                                    ", must be at least 0 and max_bitset_nodes at most 64");
    }
    if (!(options.gap >= 0 && options.gap < 1)) {
        throw std::invalid_argument("gap is " + text::number(options.gap) +
                                    ", must be at least 0 and below 1");
    }
    pool::check_threads(options.threads);
    if (options.max_nodes && *options.max_nodes < 1) {
        throw std::invalid_argument("max_nodes is " + std::to_string(*options.max_nodes) +
                                    ", must be at least 1");
    }
    if (options.objective == Objective::time_per_token && !generates(problem)) {
        throw std::invalid_argument("objective is time_per_token, new_tokens is " +
                                    std::to_string(problem.new_tokens) + ", must be at least 2");
    }
    const std::size_t links = link_count(problem);
    if (problem.order == Order::free && static_cast<double>(links) * problem.layers.size() > most_transfers) {
        throw std::invalid_argument("order is free with " + std::to_string(problem.layers.size()) +
                                    " layers and " + std::to_string(links) + " links, at most " +
                                    text::number(most_transfers) + " layers times links can be searched");
    }
}

std::string stopped_reason(const planner::SearchResult& result, const planner::Options& options) {
    if (result.stopped_by == "stop") return "a stop was requested";
    if (result.stopped_by == "time")
        return "the time limit of " + text::number(options.time_limit_s) + " s was reached";
    if (result.stopped_by == "bytes")
        return "the limit of " + text::bytes(options.max_bytes) + " was reached";
    return "the limit of " + std::to_string(options.max_labels) + " labels was reached";
}

// Scores the incumbent by evaluate(), whose figures solve() returns.
void confirm(const Problem& problem, Objective objective, const std::vector<Stage>& stages,
             Solution& solution) {
    const Evaluation score = evaluate(problem, stages);
    if (!score.is_feasible)
        throw std::logic_error("the planner made a plan that violates a limit: " + score.violations[0]);
    solution.stages = stages;
    solution.objective_s = value_s(score, objective);
    solution.loss = score.loss;
}

planner::Incumbent given_incumbent(const Problem& problem, const planner::Options& options) {
    planner::Incumbent incumbent;
    incumbent.gap = options.gap;
    const std::vector<Stage>& stages = options.incumbent;
    const bool is_short = !options.max_nodes || stages.size() <= static_cast<std::size_t>(*options.max_nodes);
    if (!stages.empty()) planner::offer(problem, options.objective, {is_short, 0, stages}, incumbent);
    return incumbent;
}

// Labels may take the memory that the root's relaxations leave.
planner::SearchResult search_within(const Problem& problem, const planner::Tables& t,
                                    const planner::Relaxation& least, planner::Root& root,
                                    const TimeLimit& time_limit, const planner::Options& options,
                                    std::size_t max_labels) {
    std::size_t held = 0;
    for (const auto& intervals : root.intervals) {
        for (const planner::Interval& interval : intervals)
            held += interval.relaxations.size() * planner::relaxation_bytes(t);
    }
    const std::size_t room = (options.max_bytes - std::min(held, options.max_bytes)) / label_bytes;
    const double proven = root.lower_bound_s;
    planner::SearchResult result =
        planner::search(problem, t, least, root, time_limit, std::min(max_labels, room));
    result.lower_bound_s = std::max(result.lower_bound_s, proven);
    if (result.stopped_by == "labels" && room < max_labels) result.stopped_by = "bytes";
    return result;
}

// Fixed order. With weight levels the bounds depend much on the incumbent, and the root's first ones had none: if a first
// search does not solve the problem, the root is explored again.
planner::SearchResult find_best_in_order(const Problem& problem, const planner::Tables& t,
                                         const planner::Relaxation& least, const TimeLimit& time_limit,
                                         const planner::Options& options, planner::Root& root) {
    constexpr std::size_t first_labels = 1'000;
    planner::SearchResult first;
    if (t.has_weight_levels() && options.max_labels > first_labels) {
        first = search_within(problem, t, least, root, time_limit, options, first_labels);
        if (first.is_complete || first.stopped_by != "labels") return first;
        root = planner::explore_root(problem, t, options.objective, least, time_limit, root.incumbent,
                                     options.max_bytes / 2);
    }
    planner::SearchResult result =
        search_within(problem, t, least, root, time_limit, options, options.max_labels);
    result.lower_bound_s = std::max(result.lower_bound_s, first.lower_bound_s);
    return result;
}

// Equal nodes may prove an incumbent best; what is proven of it counts in any case.
planner::SearchResult proven_by_classes(const Problem& problem, const TimeLimit& time_limit,
                                        const planner::Options& options, planner::Incumbent& incumbent) {
    const planner::ClassBound bound = planner::bound_by_classes(problem, options, time_limit, incumbent);
    return {!incumbent.stages.empty() && bound.lower_bound_s >= incumbent.cutoff(), bound.lower_bound_s,
            bound.labels, ""};
}

// Free order that a first search does not solve gets a better incumbent and, where affordable, bounds with a larger
// ng-set: both prune more than further labels would.
planner::SearchResult find_best(const Problem& problem, const planner::Tables& t,
                                const planner::Relaxation& least, const TimeLimit& time_limit,
                                const planner::Options& options, planner::Root& root) {
    constexpr std::size_t first_labels = 20'000;
    constexpr int first_orders = 30;
    constexpr double narrowest = 1e-3;  // width relative to the incumbent at which no interval is bisected
    const std::size_t max_labels = options.max_labels;
    const std::size_t max_bytes = options.max_bytes / 2;
    root = planner::explore_root(problem, t, options.objective, least, time_limit, root.incumbent, max_bytes);
    if (!t.is_free) return find_best_in_order(problem, t, least, time_limit, options, root);
    planner::SearchResult first =
        search_within(problem, t, least, root, time_limit, options, std::min(first_labels, max_labels));
    if (first.is_complete) return first;
    if (time_limit.is_reached() && !root.incumbent.stages.empty()) {
        first.stopped_by = planner::stopped_by(time_limit);
        return first;
    }
    const planner::SearchResult by_classes = proven_by_classes(problem, time_limit, options, root.incumbent);
    if (by_classes.is_complete) return by_classes;
    first.lower_bound_s = std::max(first.lower_bound_s, by_classes.lower_bound_s);
    const planner::Tables larger =
        planner::make_tables(problem, options, time_limit, 0, planner::thorough_operations);
    const bool is_larger = larger.ng_size > t.ng_size;
    // A larger ng-set is worth more than the last percent of an incumbent, but much slower with a bad one.
    const int most_orders = is_larger ? first_orders : std::numeric_limits<int>::max();
    planner::improve_by_orders(problem, options, time_limit, most_orders, root.incumbent);
    if (time_limit.is_reached()) {
        first.stopped_by = planner::stopped_by(time_limit);
        return first;
    }
    if (!is_larger || root.incumbent.stages.empty()) {
        root = planner::explore_root(problem, t, options.objective, least, time_limit, root.incumbent,
                                     max_bytes);
        planner::SearchResult again = search_within(problem, t, least, root, time_limit, options, max_labels);
        again.lower_bound_s = std::max(again.lower_bound_s, first.lower_bound_s);
        return again;
    }
    const planner::Relaxation larger_least = planner::least_loss(larger, time_limit);
    root = planner::bisect_root(problem, larger, options.objective, larger_least, time_limit, root.incumbent,
                                narrowest, max_bytes);
    planner::SearchResult result =
        search_within(problem, larger, larger_least, root, time_limit, options, max_labels);
    result.lower_bound_s = std::max(result.lower_bound_s, first.lower_bound_s);
    return result;
}

// Free order of too many nodes for visited sets.
planner::SearchResult find_best_k_cycle(const Problem& problem, planner::Tables t, planner::Relaxation least,
                                        const TimeLimit& time_limit, const planner::Options& options,
                                        planner::Root& root) {
    const planner::SearchResult by_classes = proven_by_classes(problem, time_limit, options, root.incumbent);
    if (by_classes.is_complete) return by_classes;
    root = planner::explore_root_k_cycle(problem, options, time_limit, t, least, root.incumbent);
    planner::SearchResult result =
        search_within(problem, t, least, root, time_limit, options, options.max_labels);
    result.lower_bound_s = std::max(result.lower_bound_s, by_classes.lower_bound_s);
    return result;
}

// An objective of 0 equals every bound.
double relative_gap(const Solution& solution) {
    const double distance = solution.objective_s - solution.lower_bound_s;
    return distance > 0 ? distance / solution.objective_s : 0;
}

void fill(const Problem& problem, const planner::Options& options, const TimeLimit& time_limit,
          Solution& solution) {
    const planner::Tables t = planner::make_tables(problem, options, time_limit);
    const planner::Relaxation least = planner::least_loss(t, time_limit);
    const bool may_exist = least.root <= t.loss_limit && planner::trivially_infeasible(problem).empty();
    planner::SearchResult result;
    result.is_complete = true;
    planner::Root root;
    root.incumbent = given_incumbent(problem, options);
    if (may_exist) {
        result = t.keys_are_exact ? find_best(problem, t, least, time_limit, options, root)
                                  : find_best_k_cycle(problem, t, least, time_limit, options, root);
    }
    solution.labels = result.labels;
    const bool has_plan = !root.incumbent.stages.empty();
    if (has_plan) confirm(problem, options.objective, root.incumbent.stages, solution);
    if (!result.is_complete) {
        solution.status = has_plan ? Status::feasible : Status::unknown;
        solution.reason = stopped_reason(result, options);
        solution.lower_bound_s = std::min(result.lower_bound_s, solution.objective_s * (1 - options.gap));
    } else if (!has_plan) {
        solution.status = Status::infeasible;
        solution.lower_bound_s = infinity;
        solution.reason = planner::explain_infeasible(problem, t, least, options, time_limit);
    } else {
        // Plans that are better by less than the gap may have been pruned.
        solution.status = options.gap > 0 ? Status::feasible : Status::optimal;
        solution.lower_bound_s = solution.objective_s * (1 - options.gap);
        if (options.gap > 0) solution.reason = "the gap of " + text::number(options.gap) + " was proven";
    }
    if (has_plan) solution.gap = relative_gap(solution);
}

}  // namespace

const char* status_name(Status status) {
    switch (status) {
        case Status::optimal:
            return "optimal";
        case Status::feasible:
            return "feasible";
        case Status::infeasible:
            return "infeasible";
        case Status::unknown:
            break;
    }
    return "unknown";
}

const char* objective_name(Objective objective) {
    switch (objective) {
        case Objective::latency:
            return "latency";
        case Objective::throughput:
            return "throughput";
        case Objective::time_to_first_token:
            return "time_to_first_token";
        case Objective::time_per_token:
            break;
    }
    return "time_per_token";
}

Solution planner::solve(const Problem& problem, const Options& options) {
    const TimeLimit time_limit(options.time_limit_s, options.stop_requested);
    check(problem, options);
    Solution solution;
    fill(problem, options, time_limit, solution);
    solution.seconds = time_limit.seconds();
    return solution;
}

Solution solve(const Problem& problem, const SolveOptions& options) {
    validate(problem);
    return planner::solve(problem, planner::Options{options});
}

Solution solve(const PreparedProblem& problem, const SolveOptions& options) {
    return planner::solve(problem.problem(), planner::Options{options});
}

}  // namespace orbitsplit
