// Problems, solutions and evaluations.
#include "orbitsplit/planner.hpp"

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "c_api/status.hpp"
#include "orbitsplit/c_api.h"

using namespace orbitsplit;
using namespace orbitsplit::c_api;

struct orbitsplit_problem {
    PreparedProblem problem;
};

struct orbitsplit_solution {
    Solution solution;
    std::vector<orbitsplit_stage> stages;
};

struct orbitsplit_evaluation {
    Evaluation evaluation;
    std::vector<const char*> violations;
};

namespace {

static_assert(static_cast<int>(Objective::time_per_token) == ORBITSPLIT_TIME_PER_TOKEN);
static_assert(static_cast<int>(Status::unknown) == ORBITSPLIT_UNKNOWN);
static_assert(no_level == ORBITSPLIT_NO_LEVEL);

// Counts whose product is an array of the caller; no array has 2^48 numbers or more.
std::size_t product(std::initializer_list<std::size_t> counts) {
    constexpr std::size_t limit = std::size_t{1} << (sizeof(std::size_t) > 4 ? 48 : 28);
    std::size_t all = 1;
    for (const std::size_t count : counts) {
        if (count > 0 && all > limit / count)
            throw std::invalid_argument("an array of the problem has more than " + std::to_string(limit) +
                                        " numbers");
        all *= count;
    }
    return all;
}

std::vector<double> numbers(const double* begin, std::size_t count, const char* name) {
    const std::span<const double> given = array_of(begin, count, name);
    return {given.begin(), given.end()};
}

std::vector<double> numbers_if_given(const double* begin, std::size_t count) {
    return begin == nullptr ? std::vector<double>() : std::vector<double>(begin, begin + count);
}

std::string name_of(const char* const* names, std::size_t index, const char* what) {
    if (names == nullptr) return std::string(what) + " " + std::to_string(index);
    return &needed(names[index], what);
}

std::vector<ProblemNode> nodes_of(const orbitsplit_problem_arrays& given) {
    const std::span memory = array_of(given.memory_bytes, given.nodes, "memory_bytes");
    std::vector<ProblemNode> nodes;
    for (std::size_t n = 0; n < given.nodes; ++n)
        nodes.push_back({.name = name_of(given.node_names, n, "node"),
                         .memory_bytes = memory[n],
                         .headroom_bytes = given.headroom_bytes == nullptr ? 0 : given.headroom_bytes[n],
                         .half_duplex = given.half_duplex != nullptr && given.half_duplex[n] != 0});
    return nodes;
}

std::vector<Level> levels_of(const orbitsplit_problem_arrays& given) {
    std::vector<Level> levels;
    for (const orbitsplit_level& level : array_of(given.level, given.levels, "level"))
        levels.push_back({.name = &needed(level.name, "name of a level"),
                          .ratio = level.ratio == 0 ? 1 : level.ratio,
                          .encode_s_per_byte = level.encode_s_per_byte,
                          .decode_s_per_byte = level.decode_s_per_byte});
    return levels;
}

std::optional<ExternalLink> external(const orbitsplit_external_link* link, std::size_t nodes) {
    if (link == nullptr) return std::nullopt;
    return ExternalLink{.bytes = link->bytes,
                        .bandwidth_bytes_per_s =
                            numbers(link->bandwidth_bytes_per_s, nodes, "bandwidth_bytes_per_s of a link"),
                        .latency_s = numbers(link->latency_s, nodes, "latency_s of a link")};
}

Pins pins_of(const orbitsplit_problem_arrays& given) {
    Pins pins;
    const std::span layers = array_of(given.pinned_layers, given.pins, "pinned_layers");
    const std::span nodes = array_of(given.pinned_nodes, given.pins, "pinned_nodes");
    for (std::size_t k = 0; k < given.pins; ++k) pins.layers.push_back({layers[k], nodes[k]});
    const std::span required = array_of(given.required_nodes, given.required, "required_nodes");
    pins.required.assign(required.begin(), required.end());
    const std::span forbidden = array_of(given.forbidden_nodes, given.forbidden, "forbidden_nodes");
    pins.forbidden.assign(forbidden.begin(), forbidden.end());
    return pins;
}

// The arrays of layers: one block for each weight level, or one.
void copy_layers(const orbitsplit_problem_arrays& given, Problem& problem) {
    const std::size_t blocks = given.weight_levels == 0 ? 1 : given.weight_levels;
    const std::size_t times = product({blocks, given.nodes, given.layers});
    for (std::size_t l = 0; l < given.layers; ++l)
        problem.layers.push_back(name_of(given.layer_names, l, "layer"));
    problem.layer_memory_bytes =
        numbers(given.layer_memory_bytes, product({blocks, given.layers}), "layer_memory_bytes");
    problem.layer_time_s = numbers(given.layer_time_s, times, "layer_time_s");
    problem.layer_earlier_time_s = numbers_if_given(given.layer_earlier_time_s, times);
    problem.layer_decode_time_s = numbers_if_given(given.layer_decode_time_s, times);
    const std::size_t overheads = product({blocks, given.nodes});
    problem.stage_overhead_s = numbers_if_given(given.stage_overhead_s, overheads);
    problem.stage_decode_overhead_s = numbers_if_given(given.stage_decode_overhead_s, overheads);
    for (std::size_t w = 0; w < given.weight_levels; ++w)
        problem.weight_levels.push_back({name_of(given.weight_level_names, w, "weights")});
    problem.weight_loss = numbers_if_given(given.weight_loss, product({given.weight_levels, given.layers}));
}

Problem problem_of(const orbitsplit_problem_arrays& given) {
    if (given.layers == 0 || given.nodes == 0)
        throw std::invalid_argument("the problem has " + std::to_string(given.layers) + " layers and " +
                                    std::to_string(given.nodes) + " nodes, it must have at least 1");
    if (given.order != ORBITSPLIT_ORDER_FIXED && given.order != ORBITSPLIT_ORDER_FREE)
        throw std::invalid_argument("order is " + std::to_string(given.order) + ", it must be 0 or 1");
    const std::size_t cuts = given.layers - 1;
    const std::size_t links = product({given.nodes, given.nodes});
    Problem problem;
    copy_layers(given, problem);
    problem.nodes = nodes_of(given);
    problem.levels = levels_of(given);
    problem.cut_bytes = numbers(given.cut_bytes, cuts, "cut_bytes");
    problem.cut_decode_bytes = numbers_if_given(given.cut_decode_bytes, cuts);
    problem.bandwidth_bytes_per_s = numbers(given.bandwidth_bytes_per_s, links, "bandwidth_bytes_per_s");
    problem.latency_s = numbers(given.latency_s, links, "latency_s");
    problem.loss = numbers(given.loss, product({cuts, given.levels}), "loss");
    if (given.loss_budget != nullptr) problem.loss_budget = *given.loss_budget;
    problem.micro_batches = given.micro_batches == 0 ? 1 : given.micro_batches;
    problem.new_tokens = given.new_tokens;
    if (given.groups != 0) problem.groups = given.groups;
    problem.tokens_per_step = given.tokens_per_step == 0 ? 1 : given.tokens_per_step;
    problem.ingress = external(given.ingress, given.nodes);
    problem.egress = external(given.egress, given.nodes);
    problem.order = given.order == ORBITSPLIT_ORDER_FREE ? Order::free : Order::fixed;
    problem.latency_occupies_link = given.latency_occupies_link != 0;
    problem.pins = pins_of(given);
    return problem;
}

std::vector<Stage> stages_of(const orbitsplit_stage* stages, std::size_t count, const char* name) {
    std::vector<Stage> result;
    for (const orbitsplit_stage& stage : array_of(stages, count, name))
        result.push_back({stage.node, stage.start, stage.stop, stage.level, stage.weight_level});
    return result;
}

SolveOptions options_of(const orbitsplit_solve_options& given) {
    if (given.objective < ORBITSPLIT_LATENCY || given.objective > ORBITSPLIT_TIME_PER_TOKEN)
        throw std::invalid_argument("objective is " + std::to_string(given.objective) +
                                    ", it must be from 0 to 3");
    SolveOptions options;
    options.objective = static_cast<Objective>(given.objective);
    if (given.max_nodes != 0) options.max_nodes = given.max_nodes;
    options.gap = given.gap;
    if (given.time_limit_s != 0) options.time_limit_s = given.time_limit_s;
    constexpr std::uint64_t most = std::numeric_limits<std::size_t>::max();
    if (given.max_labels != 0)
        options.max_labels = static_cast<std::size_t>(std::min(most, given.max_labels));
    if (given.max_bytes != 0) options.max_bytes = static_cast<std::size_t>(std::min(most, given.max_bytes));
    if (given.stop != nullptr)
        options.stop_requested = [stop = given.stop, context = given.stop_context] {
            return stop(context) != 0;
        };
    options.incumbent = stages_of(given.incumbent, given.incumbent_stages, "incumbent");
    if (given.threads != 0) options.threads = given.threads;
    return options;
}

orbitsplit_doubles doubles_of(const std::vector<double>& numbers) { return {numbers.data(), numbers.size()}; }

}  // namespace

extern "C" {

orbitsplit_status orbitsplit_problem_new(const orbitsplit_problem_arrays* arrays,
                                         orbitsplit_problem** problem, orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(problem, "problem");
        const orbitsplit_problem_arrays given = read_struct(&needed(arrays, "arrays"), "arrays");
        *problem = new orbitsplit_problem{PreparedProblem(problem_of(given))};
    });
}

void orbitsplit_problem_free(orbitsplit_problem* problem) { delete problem; }

orbitsplit_status orbitsplit_solve(const orbitsplit_problem* problem, const orbitsplit_solve_options* options,
                                   orbitsplit_solution** solution, orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(solution, "solution");
        const SolveOptions wanted = options_of(read_struct(options, "options"));
        auto found = std::make_unique<orbitsplit_solution>();
        found->solution = solve(needed(problem, "problem").problem, wanted);
        for (const Stage& stage : found->solution.stages)
            found->stages.push_back({stage.node, stage.start, stage.stop, stage.level, stage.weight_level});
        *solution = found.release();
    });
}

void orbitsplit_solution_free(orbitsplit_solution* solution) { delete solution; }

orbitsplit_status orbitsplit_solution_read(const orbitsplit_solution* solution,
                                           orbitsplit_solution_info* info, orbitsplit_error* error) {
    return guarded(error, [&] {
        const Solution& found = needed(solution, "solution").solution;
        orbitsplit_solution_info known{};
        known.status = static_cast<std::int32_t>(found.status);
        known.objective_s = found.objective_s;
        known.lower_bound_s = found.lower_bound_s;
        known.gap = found.gap;
        known.seconds = found.seconds;
        known.loss = found.loss;
        known.labels = found.labels;
        known.stages = solution->stages.data();
        known.stage_count = solution->stages.size();
        known.reason = found.reason.c_str();
        write_struct(info, known, "info");
    });
}

orbitsplit_status orbitsplit_evaluate(const orbitsplit_problem* problem, const orbitsplit_stage* stages,
                                      size_t stage_count, orbitsplit_evaluation** evaluation,
                                      orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(evaluation, "evaluation");
        auto score = std::make_unique<orbitsplit_evaluation>();
        score->evaluation =
            evaluate(needed(problem, "problem").problem, stages_of(stages, stage_count, "stages"));
        for (const std::string& violation : score->evaluation.violations)
            score->violations.push_back(violation.c_str());
        *evaluation = score.release();
    });
}

void orbitsplit_evaluation_free(orbitsplit_evaluation* evaluation) { delete evaluation; }

orbitsplit_status orbitsplit_evaluation_read(const orbitsplit_evaluation* evaluation,
                                             orbitsplit_evaluation_info* info, orbitsplit_error* error) {
    return guarded(error, [&] {
        const Evaluation& score = needed(evaluation, "evaluation").evaluation;
        orbitsplit_evaluation_info known{};
        known.objective_s = score.objective_s;
        known.prefill_s = score.prefill_s;
        known.token_step_s = score.token_step_s;
        known.round_trip_s = score.round_trip_s;
        known.tokens_per_step = score.tokens_per_step;
        known.bottleneck_s = score.bottleneck_s;
        known.return_s = score.return_s;
        known.loss = score.loss;
        known.weight_loss = score.weight_loss;
        known.latency_s = score.latency_s;
        known.ingress_s = score.ingress_s;
        known.egress_s = score.egress_s;
        known.stage_s = doubles_of(score.stage_s);
        known.earlier_stage_s = doubles_of(score.earlier_stage_s);
        known.link_s = doubles_of(score.link_s);
        known.decode_stage_s = doubles_of(score.decode_stage_s);
        known.decode_link_s = doubles_of(score.decode_link_s);
        known.stage_memory_bytes = doubles_of(score.stage_memory_bytes);
        known.violations = evaluation->violations.data();
        known.violation_count = evaluation->violations.size();
        write_struct(info, known, "info");
    });
}
}
