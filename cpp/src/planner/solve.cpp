#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "orbitsplit/planner.hpp"
#include "planner/clock.hpp"
#include "planner/infeasible.hpp"
#include "planner/orders.hpp"
#include "planner/root.hpp"
#include "planner/search.hpp"
#include "text.hpp"

namespace orbitsplit {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::size_t most_free_nodes = 64;  // the used nodes of a label are one machine word
constexpr std::size_t most_labels = std::numeric_limits<std::int32_t>::max();

void check(const Problem& problem, const SolveOptions& options) {
    validate(problem);
    if (!(options.time_limit_s >= 0)) {
        throw std::invalid_argument("time_limit_s is " + text::number(options.time_limit_s) +
                                    ", must be at least 0");
    }
    if (options.max_labels > most_labels) {
        throw std::invalid_argument("max_labels is " + std::to_string(options.max_labels) +
                                    ", must be at most " + std::to_string(most_labels));
    }
    if (problem.order == Order::free && problem.nodes.size() > most_free_nodes) {
        throw std::invalid_argument("order is free with " + std::to_string(problem.nodes.size()) +
                                    " nodes, at most " + std::to_string(most_free_nodes) +
                                    " can be searched");
    }
}

std::string stopped_reason(const planner::SearchResult& result, const SolveOptions& options) {
    if (result.stopped_by == "time")
        return "the time limit of " + text::number(options.time_limit_s) + " s was reached";
    return "the limit of " + std::to_string(options.max_labels) + " labels was reached";
}

// Scores the incumbent with evaluate(): what solve() returns is what evaluate() confirms.
void confirm(const Problem& problem, const std::vector<Stage>& stages, Solution& solution) {
    const Evaluation score = evaluate(problem, stages);
    if (!score.is_feasible)
        throw std::logic_error("the planner made a plan that breaks a limit: " + score.violations[0]);
    solution.stages = stages;
    solution.objective_s = score.objective_s;
    solution.loss = score.loss;
}

// Free order that is not solved by a first search gets a better incumbent before the whole effort goes into
// labels: it prunes more than they do.
planner::SearchResult find_best(const Problem& problem, const planner::Tables& t,
                                const planner::Relaxation& least, const planner::Clock& clock,
                                std::size_t max_labels, planner::Root& root) {
    constexpr std::size_t first_labels = 20'000;
    root = planner::explore_root(problem, t, least, clock);
    if (!t.is_free) return planner::search(problem, t, least, root, clock, max_labels);
    planner::SearchResult first =
        planner::search(problem, t, least, root, clock, std::min(first_labels, max_labels));
    if (first.is_complete) return first;
    planner::improve_by_orders(problem, clock, root.incumbent);
    if (clock.is_over()) {
        first.stopped_by = "time";
        return first;
    }
    root = planner::explore_root(problem, t, least, clock, root.incumbent);
    return planner::search(problem, t, least, root, clock, max_labels);
}

void fill(const Problem& problem, const SolveOptions& options, const planner::Clock& clock,
          Solution& solution) {
    const planner::Tables t = planner::make_tables(problem, options.max_tracked);
    const planner::Relaxation least = planner::least_loss(t);
    const bool may_exist = least.root <= t.loss_limit;
    planner::SearchResult result;
    result.is_complete = true;
    planner::Root root;
    if (may_exist) result = find_best(problem, t, least, clock, options.max_labels, root);
    solution.labels = result.labels;
    const bool has_plan = !root.incumbent.stages.empty();
    if (has_plan) confirm(problem, root.incumbent.stages, solution);
    if (result.is_complete) {
        solution.status = has_plan ? Status::optimal : Status::infeasible;
        solution.lower_bound_s = solution.objective_s;
        solution.gap = has_plan ? 0 : infinity;
        if (!has_plan) solution.reason = planner::explain_infeasible(problem, t, least, options);
        return;
    }
    solution.status = has_plan ? Status::feasible : Status::unknown;
    solution.reason = stopped_reason(result, options);
    solution.lower_bound_s = std::min(result.lower_bound_s, solution.objective_s);
    if (has_plan) solution.gap = (solution.objective_s - solution.lower_bound_s) / solution.objective_s;
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

Solution solve(const Problem& problem, const SolveOptions& options) {
    const planner::Clock clock(options.time_limit_s);
    check(problem, options);
    Solution solution;
    fill(problem, options, clock, solution);
    solution.seconds = clock.seconds();
    return solution;
}

}  // namespace orbitsplit
