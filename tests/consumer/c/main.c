// A C program that plans a small problem, encodes activations with fixed and calibrated codecs, multiplies with quantised
// weights, stops a search and reads messages; each result is compared with a known one. Its argument is a codebook file.
#include <math.h>
#include <orbitsplit/c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static orbitsplit_error error;

static void check(int is_right, const char* what) {
    if (is_right) return;
    fprintf(stderr, "wrong: %s (last message: %s)\n", what, error.message);
    exit(EXIT_FAILURE);
}

static void ok(orbitsplit_status status) { check(status == ORBITSPLIT_OK, "a call failed"); }

static int stop_at_once(void* context) {
    ++*(int*)context;
    return 1;
}

// [a b | c] takes 2 + 1 (a quarter of 4 s on the link) + 0.5 + 2 seconds.
static orbitsplit_problem* small_problem(void) {
    static const double memory[] = {2e9, 2e9};
    static const double layer_memory[] = {1e9, 1e9, 1e9};
    static const double times[] = {1, 1, 1, 2, 2, 2};
    static const double cut_bytes[] = {4e6, 4e6};
    static const double bandwidth[] = {0, 1e6, 1e6, 0};
    static const double latency[] = {0, 0.5, 0.5, 0};
    static const orbitsplit_level levels[] = {{"raw", 1, 0, 0}, {"int8", 4, 0, 0}};
    static const double loss[] = {0, 0.1, 0, 0.1};
    static const double budget = 0.1;
    static const char* const names[] = {"a", "b", "c"};
    const orbitsplit_problem_arrays arrays = {.struct_bytes = sizeof arrays,
                                              .layers = 3,
                                              .nodes = 2,
                                              .levels = 2,
                                              .layer_names = names,
                                              .memory_bytes = memory,
                                              .layer_memory_bytes = layer_memory,
                                              .layer_time_s = times,
                                              .cut_bytes = cut_bytes,
                                              .bandwidth_bytes_per_s = bandwidth,
                                              .latency_s = latency,
                                              .level = levels,
                                              .loss = loss,
                                              .loss_budget = &budget};
    orbitsplit_problem* problem = NULL;
    ok(orbitsplit_problem_new(&arrays, &problem, &error));
    return problem;
}

static void plan(void) {
    orbitsplit_problem* problem = small_problem();
    orbitsplit_solution* solution = NULL;
    ok(orbitsplit_solve(problem, NULL, &solution, &error));
    orbitsplit_solution_info info = {.struct_bytes = sizeof info};
    ok(orbitsplit_solution_read(solution, &info, &error));
    check(info.status == ORBITSPLIT_OPTIMAL && info.objective_s == 5.5 && info.stage_count == 2, "the plan");
    orbitsplit_evaluation* evaluation = NULL;
    ok(orbitsplit_evaluate(problem, info.stages, info.stage_count, &evaluation, &error));
    orbitsplit_evaluation_info score = {.struct_bytes = sizeof score};
    ok(orbitsplit_evaluation_read(evaluation, &score, &error));
    check(score.objective_s == 5.5 && score.violation_count == 0, "the evaluation");
    orbitsplit_evaluation_free(evaluation);
    orbitsplit_solution_free(solution);
    orbitsplit_problem_free(problem);
    printf("plan: 5.5 s\n");
}

// 40 layers on 20 nodes in any order: not solved when the search first asks whether it shall stop.
static void cancel(void) {
    enum { layers = 40, nodes = 20 };
    static double numbers[nodes * nodes + nodes * layers], room[nodes], ones[layers], zeros[nodes * nodes];
    unsigned state = 1;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; ++i) {
        state = state * 1664525U + 1013904223U;
        numbers[i] = 1 + (double)(state >> 20);
    }
    for (size_t i = 0; i < nodes; ++i) room[i] = 4;
    for (size_t i = 0; i < layers; ++i) ones[i] = 1;
    const orbitsplit_level raw = {"raw", 0, 0, 0};
    const orbitsplit_problem_arrays arrays = {.struct_bytes = sizeof arrays,
                                              .layers = layers,
                                              .nodes = nodes,
                                              .levels = 1,
                                              .memory_bytes = room,
                                              .layer_memory_bytes = ones,
                                              .layer_time_s = numbers + nodes * nodes,
                                              .cut_bytes = ones,
                                              .bandwidth_bytes_per_s = numbers,
                                              .latency_s = zeros,
                                              .level = &raw,
                                              .loss = zeros,
                                              .micro_batches = 8,
                                              .order = ORBITSPLIT_ORDER_FREE};
    int calls = 0;
    const orbitsplit_solve_options options = {
        .struct_bytes = sizeof options, .stop = stop_at_once, .stop_context = &calls};
    orbitsplit_problem* problem = NULL;
    orbitsplit_solution* solution = NULL;
    ok(orbitsplit_problem_new(&arrays, &problem, &error));
    ok(orbitsplit_solve(problem, &options, &solution, &error));
    orbitsplit_solution_info info = {.struct_bytes = sizeof info};
    ok(orbitsplit_solution_read(solution, &info, &error));
    check(calls > 0 && info.status != ORBITSPLIT_OPTIMAL, "a search that was stopped");
    printf("stopped: %s\n", info.reason);
    orbitsplit_solution_free(solution);
    orbitsplit_problem_free(problem);
}

// Encodes and decodes with an encoder and a decoder, whose handles outlive the codec's, and returns the largest error.
static double round_trip(orbitsplit_codec* codec, int64_t rows, int64_t width) {
    const orbitsplit_array_type type = {ORBITSPLIT_FLOAT32, 2, {rows, width}};
    const size_t count = (size_t)(rows * width);
    float* x = malloc(2 * count * sizeof *x);
    float* y = x + count;
    for (size_t i = 0; i < count; ++i) x[i] = sinf((float)i);
    orbitsplit_encoder* encoder = NULL;
    orbitsplit_decoder* decoder = NULL;
    const orbitsplit_codec* const codecs[] = {codec};
    size_t size = 0;
    ok(orbitsplit_frame_bytes(codec, &type, &size, &error));
    ok(orbitsplit_encoder_new(codec, &type, 1, &encoder, &error));
    ok(orbitsplit_decoder_new(codecs, 1, &type, 1, &decoder, &error));
    orbitsplit_codec_free(codec);
    void* frame = malloc(size);
    ok(orbitsplit_encode(encoder, x, 4 * count, frame, size, &size, &error));
    ok(orbitsplit_decode(decoder, frame, size, y, 4 * count, &error));
    double worst = 0;
    for (size_t i = 0; i < count; ++i) worst = fmax(worst, fabs((double)x[i] - y[i]));
    check(orbitsplit_decode(decoder, frame, size - 1, y, 4 * count, &error) == ORBITSPLIT_CORRUPT_FRAME &&
              error.status == ORBITSPLIT_CORRUPT_FRAME && strstr(error.message, "frame") != NULL,
          "a frame that is cut off");
    orbitsplit_encoder_free(encoder);
    orbitsplit_decoder_free(decoder);
    free(frame);
    free(x);
    return worst;
}

static void codecs(const char* path) {
    orbitsplit_codec* codec = NULL;
    ok(orbitsplit_codec_parse("raw", &codec, &error));
    check(round_trip(codec, 3, 64) == 0, "raw keeps every bit");
    ok(orbitsplit_codec_parse("int8", &codec, &error));
    check(round_trip(codec, 3, 64) < 0.005, "int8 errs by half a step");
    check(orbitsplit_codec_parse("gzip", &codec, &error) == ORBITSPLIT_INVALID_ARGUMENT &&
              strstr(error.message, "codec \"gzip\" is unknown; valid are raw") != NULL,
          "a codec that does not exist");
    orbitsplit_codebook* book = NULL;
    ok(orbitsplit_codebook_open(path, &book, &error));
    check(orbitsplit_codebook_cut_count(book) == 2 && orbitsplit_codebook_cut(book, 1) == 11, "the cuts");
    check(orbitsplit_codebook_codec(book, 4, 0, &codec, &error) == ORBITSPLIT_NOT_FOUND,
          "a cut that is not there");
    ok(orbitsplit_codebook_codec(book, 2, 1, &codec, &error));
    orbitsplit_codebook_free(book);
    check(round_trip(codec, 70, 8) <= 0.125, "a calibrated codec errs by half a step of 0.25");
    printf("codecs: ok\n");
}

static void weights(void) {
    float values[2 * 32], x[32], y[2];
    for (int i = 0; i < 64; ++i) values[i] = (float)(i < 32 ? 1 : -2);
    for (int i = 0; i < 32; ++i) x[i] = 0.5F;
    size_t bytes = 0, scratch_bytes = 0;
    ok(orbitsplit_quantized_bytes(ORBITSPLIT_WEIGHT_INT8, 2, 32, &bytes, &error));
    ok(orbitsplit_product_scratch_bytes(1, 32, &scratch_bytes, &error));
    void* data = malloc(bytes);
    void* scratch = malloc(scratch_bytes);
    ok(orbitsplit_quantize(ORBITSPLIT_WEIGHT_INT8, 2, 32, values, NULL, NULL, data, bytes, &error));
    const orbitsplit_weight_matrix matrix = {ORBITSPLIT_WEIGHT_INT8, 0, 2, 32, data, bytes};
    ok(orbitsplit_multiply(&matrix, x, 1, NULL, scratch, scratch_bytes, y, &error));
    check(bytes == 2 * 34 && fabsf(y[0] - 16) < 0.02F && fabsf(y[1] + 32) < 0.04F, "a product");
    free(scratch);
    free(data);
    printf("weights: ok\n");
}

int main(int count, char** arguments) {
    check(count == 2, "the argument is a codebook file");
    ok(orbitsplit_check_version(ORBITSPLIT_C_API_MAJOR, ORBITSPLIT_C_API_MINOR, &error));
    check(orbitsplit_check_version(ORBITSPLIT_C_API_MAJOR + 1, 0, &error) == ORBITSPLIT_WRONG_VERSION,
          "a library of another version");
    plan();
    cancel();
    codecs(arguments[1]);
    weights();
    return EXIT_SUCCESS;
}
