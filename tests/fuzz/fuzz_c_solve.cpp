// A libFuzzer target: problems and the planner through the C interface. Any arrays are a problem or
// ORBITSPLIT_INVALID_ARGUMENT; a plan that solve() returns violates no limit and has the value that evaluate() gives it;
// any stages are scored or refused.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "orbitsplit/c_api.h"
#include "tally.hpp"

using fuzz::require;

namespace {

fuzz::Tally tally{"solved"};

// Numbers from the input; zeros after its end.
class Input {
  public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size), is_wild_(below(4) == 0) {}

    unsigned below(unsigned limit) {
        const unsigned byte = at_ < size_ ? data_[at_] : 0;
        ++at_;
        return byte % limit;
    }

    bool flag() { return below(2) == 1; }

    // Mostly small and valid; in a wild input anything that a double can be.
    double number() {
        constexpr double infinity = std::numeric_limits<double>::infinity();
        constexpr double special[] = {-1,       -0.0,      std::numeric_limits<double>::quiet_NaN(),
                                      infinity, -infinity, 1e300,
                                      1e-300,   5e-324,    1e18,
                                      0x1p53,   1e308,     0};
        const unsigned byte = below(256);
        if (is_wild_ && byte >= 240) return special[byte % std::size(special)];
        return byte / 16.0;
    }

    std::vector<double> numbers(std::size_t count) {
        std::vector<double> made(count);
        std::generate(made.begin(), made.end(), [&] { return number(); });
        return made;
    }

    std::vector<std::int32_t> indices(std::size_t count) {
        std::vector<std::int32_t> made(count);
        for (std::int32_t& index : made)
            index = static_cast<std::int32_t>(below(is_wild_ ? 256 : 8)) - (is_wild_ ? 2 : 0);
        return made;
    }

    // Any stages: mostly no plan.
    std::vector<orbitsplit_stage> stages() {
        std::vector<orbitsplit_stage> made(below(4));
        for (orbitsplit_stage& stage : made) {
            const std::vector<std::int32_t> i = indices(5);
            stage = {i[0], i[1], i[2], i[3] - 1, i[4] - 1};
        }
        return made;
    }

  private:
    const std::uint8_t* data_;
    std::size_t size_;
    std::size_t at_ = 0;
    bool is_wild_;
};

// Arrays of a problem, and the memory they are in.
class Arrays {
  public:
    explicit Arrays(Input& in) {
        p_.struct_bytes = sizeof p_;
        p_.layers = 1 + in.below(5);
        p_.nodes = 1 + in.below(3);
        p_.levels = in.below(3);
        p_.weight_levels = in.below(3);
        const std::size_t blocks = std::max<std::size_t>(1, p_.weight_levels);
        const std::size_t times = blocks * p_.nodes * p_.layers;
        const std::size_t links = p_.nodes * p_.nodes;
        p_.memory_bytes = keep(in.numbers(p_.nodes));
        p_.layer_memory_bytes = keep(in.numbers(blocks * p_.layers));
        p_.layer_time_s = keep(in.numbers(times));
        p_.bandwidth_bytes_per_s = keep(in.numbers(links));
        p_.latency_s = keep(in.numbers(links));
        p_.cut_bytes = keep(in.numbers(p_.layers - 1));
        p_.loss = keep(in.numbers((p_.layers - 1) * p_.levels));
        add_levels(in);
        if (in.flag()) p_.headroom_bytes = keep(in.numbers(p_.nodes));
        if (in.flag()) p_.layer_earlier_time_s = keep(in.numbers(times));
        if (in.flag()) p_.layer_decode_time_s = keep(in.numbers(times));
        if (in.flag()) p_.stage_overhead_s = keep(in.numbers(blocks * p_.nodes));
        if (in.flag()) p_.stage_decode_overhead_s = keep(in.numbers(blocks * p_.nodes));
        if (in.flag()) p_.cut_decode_bytes = keep(in.numbers(p_.layers - 1));
        if (in.flag()) p_.loss_budget = keep(in.numbers(1));
        if (p_.weight_levels > 0) p_.weight_loss = keep(in.numbers(p_.weight_levels * p_.layers));
        add_rest(in);
    }

    const orbitsplit_problem_arrays& arrays() const { return p_; }

  private:
    const double* keep(std::vector<double> numbers) { return kept_.emplace_back(std::move(numbers)).data(); }

    void add_levels(Input& in) {
        for (std::size_t k = 0; k < p_.levels; ++k)
            levels_.push_back({"level", k == 0 ? 1 : 1 + in.number(), in.number(), in.number()});
        p_.level = levels_.data();
    }

    void add_rest(Input& in) {
        p_.micro_batches = in.below(6);
        p_.new_tokens = in.below(5);
        p_.groups = in.below(4);
        p_.tokens_per_step = in.flag() ? 1 + in.number() : 0;
        p_.order = static_cast<std::int32_t>(in.below(2));
        p_.latency_occupies_link = static_cast<std::int32_t>(in.below(2));
        half_duplex_.resize(p_.nodes);
        for (std::uint8_t& is_half : half_duplex_) is_half = static_cast<std::uint8_t>(in.below(2));
        p_.half_duplex = half_duplex_.data();
        for (orbitsplit_external_link* link : {&ingress_, &egress_})
            *link = {in.number(), keep(in.numbers(p_.nodes)), keep(in.numbers(p_.nodes))};
        if (in.flag()) p_.ingress = &ingress_;
        if (in.flag()) p_.egress = &egress_;
        if (in.below(4) != 0) return;
        pins_ = in.indices(4);
        p_.pins = p_.required = p_.forbidden = 1;
        p_.pinned_layers = pins_.data();
        p_.pinned_nodes = pins_.data() + 1;
        p_.required_nodes = pins_.data() + 2;
        p_.forbidden_nodes = pins_.data() + 3;
    }

    orbitsplit_problem_arrays p_{};
    std::vector<std::vector<double>> kept_;
    std::vector<orbitsplit_level> levels_;
    std::vector<std::uint8_t> half_duplex_;
    std::vector<std::int32_t> pins_;
    orbitsplit_external_link ingress_{};
    orbitsplit_external_link egress_{};
};

bool is_close(double a, double b) {
    return a == b || std::fabs(a - b) <= 1e-9 * std::max(std::fabs(a), std::fabs(b));
}

double value_of(const orbitsplit_evaluation_info& score, std::int32_t objective) {
    if (objective == ORBITSPLIT_THROUGHPUT) return score.bottleneck_s / score.tokens_per_step;
    if (objective == ORBITSPLIT_TIME_TO_FIRST_TOKEN) return score.prefill_s;
    if (objective == ORBITSPLIT_TIME_PER_TOKEN) return score.token_step_s / score.tokens_per_step;
    return score.objective_s;
}

void check_plan(const orbitsplit_problem* problem, const orbitsplit_solution_info& info,
                std::int32_t objective) {
    orbitsplit_evaluation* evaluation = nullptr;
    require(
        orbitsplit_evaluate(problem, info.stages, info.stage_count, &evaluation, nullptr) == ORBITSPLIT_OK,
        "a plan that solve() returns is a plan");
    orbitsplit_evaluation_info score{};
    score.struct_bytes = sizeof score;
    require(orbitsplit_evaluation_read(evaluation, &score, nullptr) == ORBITSPLIT_OK,
            "an evaluation is read");
    require(score.violation_count == 0, "a plan that solve() returns violates no limit");
    require(is_close(value_of(score, objective), info.objective_s), "it has the value that solve() says");
    require(info.lower_bound_s <= info.objective_s, "the lower bound is not above the value");
    orbitsplit_evaluation_free(evaluation);
}

void try_solve(const orbitsplit_problem* problem, Input& in) {
    orbitsplit_solve_options options{};
    options.struct_bytes = sizeof options;
    options.objective = static_cast<std::int32_t>(in.below(4));
    options.max_nodes = static_cast<std::int32_t>(in.below(4));
    options.gap = in.flag() ? in.number() / 16 : 0;
    options.max_labels = 1 + in.below(256);
    options.max_bytes = in.below(8) == 0 ? 1 + in.below(256) : 0;
    const std::vector<orbitsplit_stage> incumbent = in.stages();
    options.incumbent = incumbent.data();
    options.incumbent_stages = in.flag() ? incumbent.size() : 0;
    options.threads = static_cast<std::int32_t>(in.below(4));
    orbitsplit_solution* solution = nullptr;
    const orbitsplit_status status = orbitsplit_solve(problem, &options, &solution, nullptr);
    require(status == ORBITSPLIT_OK || status == ORBITSPLIT_INVALID_ARGUMENT,
            "a problem is solved or options refused");
    if (status != ORBITSPLIT_OK) return;
    ++tally.accepted;
    orbitsplit_solution_info info{};
    info.struct_bytes = sizeof info;
    require(orbitsplit_solution_read(solution, &info, nullptr) == ORBITSPLIT_OK, "a solution is read");
    const bool has_plan = info.status == ORBITSPLIT_OPTIMAL || info.status == ORBITSPLIT_FEASIBLE;
    require(has_plan == (info.stage_count > 0), "a solution has stages where its status says so");
    if (has_plan) check_plan(problem, info, options.objective);
    orbitsplit_solution_free(solution);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    ++tally.inputs;
    Input in(data, size);
    const Arrays arrays(in);
    orbitsplit_problem* problem = nullptr;
    orbitsplit_error error{};
    const orbitsplit_status status = orbitsplit_problem_new(&arrays.arrays(), &problem, &error);
    require(status == ORBITSPLIT_OK || (status == ORBITSPLIT_INVALID_ARGUMENT && error.message[0] != '\0'),
            "arrays are a problem or refused");
    if (status != ORBITSPLIT_OK) return 0;
    const std::vector<orbitsplit_stage> stages = in.stages();
    orbitsplit_evaluation* evaluation = nullptr;
    const orbitsplit_status scored =
        orbitsplit_evaluate(problem, stages.data(), stages.size(), &evaluation, nullptr);
    require(scored == ORBITSPLIT_OK || scored == ORBITSPLIT_INVALID_ARGUMENT, "stages are scored or refused");
    orbitsplit_evaluation_free(evaluation);
    try_solve(problem, in);
    orbitsplit_problem_free(problem);
    return 0;
}
