#include "orbitsplit/cost.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "planner/cost.hpp"
#include "support/text.hpp"

namespace orbitsplit {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

[[noreturn]] void reject(const std::string& message) { throw std::invalid_argument(message); }

std::string stage_name(std::size_t k) { return "stage " + std::to_string(k); }

std::string node_name(const Problem& problem, int node) {
    return "node \"" + problem.nodes[node].name + "\"";
}

void check_level(const Problem& problem, const std::vector<Stage>& stages, std::size_t k) {
    const int level = stages[k].level;
    if (k + 1 == stages.size()) {
        if (level != no_level) reject(stage_name(k) + " is the last, no cut follows it, but it has a level");
    } else if (level == no_level) {
        reject(stage_name(k) + " has no level for the cut after it");
    } else if (level < 0 || level >= static_cast<int>(problem.levels.size())) {
        reject(stage_name(k) + " has level " + std::to_string(level) + ", the problem has " +
               std::to_string(problem.levels.size()) + " levels");
    }
}

void check_weight_level(const Problem& problem, const std::vector<Stage>& stages, std::size_t k) {
    const int level = stages[k].weight_level;
    const int count = static_cast<int>(problem.weight_levels.size());
    if (level == no_level) {
        if (count > 0)
            reject(stage_name(k) + " has no weight level, the problem has " + std::to_string(count));
    } else if (level < 0 || level >= count) {
        reject(stage_name(k) + " has weight level " + std::to_string(level) + ", the problem has " +
               std::to_string(count) + " weight levels");
    }
}

void check_node(const Problem& problem, const std::vector<Stage>& stages, std::size_t k) {
    const int node = stages[k].node;
    if (node < 0 || node >= static_cast<int>(problem.nodes.size())) {
        reject(stage_name(k) + " is on node " + std::to_string(node) + ", the nodes are 0 to " +
               std::to_string(problem.nodes.size() - 1));
    }
    for (std::size_t j = 0; j < k; ++j) {
        if (stages[j].node == node)
            reject(stage_name(k) + " is on " + node_name(problem, node) + ", which has a stage");
    }
    if (problem.order == Order::fixed && k > 0 && node < stages[k - 1].node) {
        reject(stage_name(k) + " is on node " + std::to_string(node) + " after node " +
               std::to_string(stages[k - 1].node) + ", the order is fixed");
    }
}

void check_stages(const Problem& problem, const std::vector<Stage>& stages) {
    const int layers = static_cast<int>(problem.layers.size());
    if (stages.empty()) reject("the plan has no stage");
    int expected = 0;
    for (std::size_t k = 0; k < stages.size(); ++k) {
        const Stage& stage = stages[k];
        if (stage.start != expected) {
            reject(stage_name(k) + " starts at layer " + std::to_string(stage.start) + ", must start at " +
                   std::to_string(expected));
        }
        if (stage.stop <= stage.start || stage.stop > layers) {
            reject(stage_name(k) + " stops at layer " + std::to_string(stage.stop) + ", must stop at " +
                   std::to_string(stage.start + 1) + " to " + std::to_string(layers));
        }
        check_node(problem, stages, k);
        check_level(problem, stages, k);
        check_weight_level(problem, stages, k);
        expected = stage.stop;
    }
    if (expected != layers) {
        reject("the plan stops at layer " + std::to_string(expected) + ", the problem has " +
               std::to_string(layers));
    }
}

std::size_t weight_level_of(const Stage& stage) {
    return static_cast<std::size_t>(std::max(0, stage.weight_level));
}

double bandwidth_between(const Problem& problem, int source, int destination) {
    return problem.bandwidth_bytes_per_s[source * problem.nodes.size() + destination];
}

double latency_between(const Problem& problem, int source, int destination) {
    return problem.latency_s[source * problem.nodes.size() + destination];
}

// The quantities to sum: those of a micro-batch, or those of a token step.
struct Phase {
    const std::vector<double>& layer_time_s;
    const std::vector<double>& earlier_time_s;    // for the maximum; the same array if all are alike
    const std::vector<double>& stage_overhead_s;  // empty: 0
    const std::vector<double>& cut_bytes;
    bool external;  // ingress and egress count
};

class Scorer {
  public:
    Scorer(const Problem& problem, const std::vector<Stage>& stages, Evaluation& result)
        : problem_(problem), stages_(stages), result_(result) {}

    void score() {
        const std::size_t count = stages_.size();
        Totals totals;
        result_.stage_s.resize(count);
        result_.link_s.resize(count - 1);
        const Phase prefill{problem_.layer_time_s, earlier_time_s(problem_), problem_.stage_overhead_s,
                            problem_.cut_bytes, true};
        run(prefill, result_.stage_s, result_.link_s, totals.sum, totals.max);
        result_.prefill_s = is_linked_ ? prefill_s(problem_, totals) : infinity;
        result_.objective_s = result_.prefill_s;
        result_.bottleneck_s = is_linked_ ? totals.max : infinity;
        if (generates(problem_)) score_decode(totals);
        score_limits();
        result_.is_feasible = result_.violations.empty();
    }

  private:
    void violate(const std::string& message) { result_.violations.push_back(message); }

    void score_decode(Totals& totals) {
        result_.tokens_per_step = problem_.tokens_per_step;
        result_.decode_stage_s.resize(stages_.size());
        result_.decode_link_s.resize(stages_.size() - 1);
        const std::vector<double>& times = problem_.layer_decode_time_s;
        const Phase decode{times, times, problem_.stage_decode_overhead_s, problem_.cut_decode_bytes, false};
        run(decode, result_.decode_stage_s, result_.decode_link_s, totals.decode_sum, totals.decode_max);
        result_.return_s = return_latency();
        totals.decode_sum += result_.return_s;
        result_.round_trip_s = totals.decode_sum;
        result_.token_step_s = result_.round_trip_s < infinity ? token_step_s(problem_, totals) : infinity;
        result_.bottleneck_s = is_linked_ ? totals.decode_max : infinity;
        result_.objective_s =
            result_.token_step_s < infinity && is_linked_ ? objective_s(problem_, totals) : infinity;
    }

    // Sums one phase in the order in which a micro-batch passes the resources.
    void run(const Phase& phase, std::vector<double>& stage_s, std::vector<double>& link_s, double& sum,
             double& max) {
        const bool is_alike = &phase.earlier_time_s == &phase.layer_time_s;
        if (phase.external && problem_.ingress) {
            result_.ingress_s =
                external_s(*problem_.ingress, "the input", stages_.front().node, "reaches", sum);
            add(result_.ingress_s, sum, max);
        }
        for (std::size_t k = 0; k < stages_.size(); ++k) {
            stage_s[k] = computing_s(phase, phase.layer_time_s, k);
            double earlier_s = is_alike ? stage_s[k] : computing_s(phase, phase.earlier_time_s, k);
            double sending = 0;
            if (k + 1 < stages_.size()) {
                sending = link_s[k] = sending_s(phase, k, sum);
            } else if (phase.external && problem_.egress) {
                sending = result_.egress_s =
                    external_s(*problem_.egress, "the result", stages_[k].node, "leaves", sum);
            }
            if (problem_.nodes[stages_[k].node].half_duplex) {
                stage_s[k] += sending;
                earlier_s += sending;
                sending = 0;
            }
            sum += stage_s[k];
            max = std::max(max, earlier_s);
            if (!is_alike) result_.earlier_stage_s.push_back(earlier_s);
            add(sending, sum, max);
        }
    }

    static void add(double occupancy, double& sum, double& max) {
        sum += occupancy;
        max = std::max(max, occupancy);
    }

    double computing_s(const Phase& phase, const std::vector<double>& layer_time_s, std::size_t k) const {
        const Stage& stage = stages_[k];
        const double* times = layer_time_s.data() + time_index(problem_, weight_level_of(stage), stage.node);
        double total = 0;
        for (int i = stage.start; i < stage.stop; ++i) total += times[i];
        if (!phase.stage_overhead_s.empty())
            total += phase.stage_overhead_s[stage_index(problem_, weight_level_of(stage), stage.node)];
        if (k > 0) {
            const Stage& before = stages_[k - 1];
            total += problem_.levels[before.level].decode_s_per_byte * phase.cut_bytes[before.stop - 1];
        }
        if (stage.level != no_level) {
            total += problem_.levels[stage.level].encode_s_per_byte * phase.cut_bytes[stage.stop - 1];
        }
        return total;
    }

    double sending_s(const Phase& phase, std::size_t k, double& sum) {
        const int source = stages_[k].node;
        const int destination = stages_[k + 1].node;
        const double bandwidth = bandwidth_between(problem_, source, destination);
        if (bandwidth <= 0) {
            if (phase.external) {
                violate("no link joins " + node_name(problem_, source) + " to " +
                        node_name(problem_, destination));
            }
            is_linked_ = false;
            return infinity;
        }
        const double latency = latency_between(problem_, source, destination);
        const double compressed =
            phase.cut_bytes[stages_[k].stop - 1] / problem_.levels[stages_[k].level].ratio;
        sum += propagation_s(problem_, latency);
        if (phase.external) result_.latency_s += propagation_s(problem_, latency);
        return link_occupancy_s(problem_, compressed, bandwidth, latency);
    }

    double external_s(const ExternalLink& link, const char* what, int node, const char* verb, double& sum) {
        const double bandwidth = link.bandwidth_bytes_per_s[node];
        if (bandwidth <= 0) {
            violate(std::string("no link over which ") + what + " " + verb + " " + node_name(problem_, node));
            is_linked_ = false;
            return infinity;
        }
        const double latency = link.latency_s[node];
        sum += propagation_s(problem_, latency);
        result_.latency_s += propagation_s(problem_, latency);
        return link_occupancy_s(problem_, link.bytes, bandwidth, latency);
    }

    double return_latency() {
        const int first = stages_.front().node;
        const int last = stages_.back().node;
        if (stages_.size() == 1) return 0;
        const bool is_direct = bandwidth_between(problem_, last, first) > 0;
        const double direct = is_direct ? latency_between(problem_, last, first) : infinity;
        double total = 0;
        for (std::size_t k = 0; k + 1 < stages_.size(); ++k) {
            const int source = stages_[k + 1].node;
            const int destination = stages_[k].node;
            if (bandwidth_between(problem_, source, destination) <= 0) {
                if (is_direct) return direct;
                violate("tokens cannot return from " + node_name(problem_, last) + " to " +
                        node_name(problem_, first) + ": no link joins them, and none joins " +
                        node_name(problem_, source) + " to " + node_name(problem_, destination));
                return infinity;
            }
            total += latency_between(problem_, source, destination);
        }
        return std::min(direct, total);
    }

    void score_limits() {
        for (std::size_t k = 0; k < stages_.size(); ++k) score_memory(k);
        for (std::size_t k = 0; k < stages_.size(); ++k) {
            if (!problem_.weight_levels.empty()) score_weight_loss(k);
            if (k + 1 < stages_.size()) score_loss(stages_[k]);
        }
        if (result_.loss < infinity && result_.loss > loss_limit(problem_)) {
            const double budget = *problem_.loss_budget;
            violate("the loss is " + text::number(result_.loss, budget) + ", the budget is " +
                    text::number(budget, result_.loss));
        }
        score_pins();
    }

    void score_weight_loss(std::size_t k) {
        const Stage& stage = stages_[k];
        const double* losses = problem_.weight_loss.data() + weight_level_of(stage) * problem_.layers.size();
        double total = 0;
        for (int i = stage.start; i < stage.stop; ++i) {
            total += losses[i];
            if (losses[i] == infinity) {
                violate("layer " + std::to_string(i) + " (\"" + problem_.layers[i] +
                        "\") does not have weight level \"" +
                        problem_.weight_levels[stage.weight_level].name + "\" of " + stage_name(k));
            }
        }
        result_.loss += total;
        result_.weight_loss += total;
    }

    void score_loss(const Stage& stage) {
        const int cut = stage.stop - 1;
        const double loss = problem_.loss[cut * problem_.levels.size() + stage.level];
        result_.loss += loss;
        if (loss == infinity) {
            violate("cut " + std::to_string(cut) + ", after layer \"" + problem_.layers[cut] +
                    "\", does not have level \"" + problem_.levels[stage.level].name + "\"");
        }
    }

    void score_memory(std::size_t k) {
        const Stage& stage = stages_[k];
        const double* memory =
            problem_.layer_memory_bytes.data() + weight_level_of(stage) * problem_.layers.size();
        double total = 0;
        for (int i = stage.start; i < stage.stop; ++i) total += memory[i];
        result_.stage_memory_bytes.push_back(total);
        const ProblemNode& node = problem_.nodes[stage.node];
        if (total > usable_memory_bytes(node)) {
            const double usable = usable_memory_bytes(node);
            violate(stage_name(k) + " needs " + text::bytes(total, usable) + ", " +
                    node_name(problem_, stage.node) + " has " + text::bytes(usable, total));
        }
    }

    void score_pins() {
        const auto has_stage = [&](int node) {
            return std::any_of(stages_.begin(), stages_.end(),
                               [&](const Stage& stage) { return stage.node == node; });
        };
        for (const Pin& pin : problem_.pins.layers) {
            for (const Stage& stage : stages_) {
                if (stage.start <= pin.layer && pin.layer < stage.stop && stage.node != pin.node) {
                    violate("layer " + std::to_string(pin.layer) + " (\"" + problem_.layers[pin.layer] +
                            "\") is on " + node_name(problem_, stage.node) + ", pinned to " +
                            node_name(problem_, pin.node));
                }
            }
        }
        for (int node : problem_.pins.required) {
            if (!has_stage(node)) violate(node_name(problem_, node) + " is required and has no stage");
        }
        for (int node : problem_.pins.forbidden) {
            if (has_stage(node)) violate(node_name(problem_, node) + " is forbidden and has a stage");
        }
    }

    const Problem& problem_;
    const std::vector<Stage>& stages_;
    Evaluation& result_;
    bool is_linked_ = true;
};

}  // namespace

Evaluation evaluate(const Problem& problem, const std::vector<Stage>& stages) {
    check_stages(problem, stages);
    Evaluation result;
    Scorer(problem, stages, result).score();
    return result;
}

Evaluation evaluate(const PreparedProblem& problem, const std::vector<Stage>& stages) {
    return evaluate(problem.problem(), stages);
}

}  // namespace orbitsplit
