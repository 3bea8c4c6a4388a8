// The C interface: planner, codecs, codebooks and quantised weights for C and for languages that call C. Plain C11; the
// library is orbitsplit_c, which exports nothing else. docs/guides/c_interface.md introduces it.
//
// Functions that can fail return a status and take an orbitsplit_error, which may be NULL, for the message: memory of the
// caller, so that there is no global or thread-local state. No exception leaves a function, nor does one read a NULL for an
// argument that is needed: that is ORBITSPLIT_INVALID_ARGUMENT. On failure results are unchanged, but memory for frames and
// arrays has unspecified contents.
//
// Objects behind pointers (orbitsplit_problem ...) are made and freed here; free functions take NULL. All but encoders and
// decoders are immutable: threads may share them. Memory of the caller is read during a call only. Structs that may grow
// begin with `struct_bytes`, which the caller sets to sizeof(the struct); a field that is 0 or NULL has its default, so
// that a program built with an older header runs with a newer library.
#ifndef ORBITSPLIT_C_API_H
#define ORBITSPLIT_C_API_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ORBITSPLIT_C_API __attribute__((visibility("default")))
#else
#define ORBITSPLIT_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

// The version of this interface: of the binary interface (the SOVERSION of the library), and of what was added to it.
#define ORBITSPLIT_C_API_MAJOR 0
#define ORBITSPLIT_C_API_MINOR 1

enum {
    ORBITSPLIT_OK = 0,
    ORBITSPLIT_INVALID_ARGUMENT = 1,
    ORBITSPLIT_CORRUPT_FRAME = 2,  // bytes that are no valid frame, or need another codec
    ORBITSPLIT_INVALID_FILE = 3,   // bytes that are no valid codebook
    ORBITSPLIT_NOT_FOUND = 4,      // a cut or a level that a codebook does not have
    ORBITSPLIT_FILE_ERROR = 5,     // a file that cannot be read
    ORBITSPLIT_STOPPED = 6,        // at the caller's request
    ORBITSPLIT_BUSY = 7,           // an encoder or a decoder during another call of it
    ORBITSPLIT_OUT_OF_MEMORY = 8,
    ORBITSPLIT_WRONG_VERSION = 9,   // of the library or of a struct
    ORBITSPLIT_INTERNAL_ERROR = 10  // a defect of the library
};
typedef int32_t orbitsplit_status;

// The message states the fact, the numbers and the limit; one that is too long ends with "...". Set by failures only.
typedef struct orbitsplit_error {
    orbitsplit_status status;
    char message[508];
} orbitsplit_error;

// "0.1.0"
ORBITSPLIT_C_API const char* orbitsplit_version(void);

// Call it first, with ORBITSPLIT_C_API_MAJOR and ORBITSPLIT_C_API_MINOR: ORBITSPLIT_WRONG_VERSION if the library that is
// loaded does not have what this header declares.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_check_version(int major, int minor, orbitsplit_error* error);

// Returns true (not 0) to stop the call, from then on always. Called up to some thousand times a second: by the calling
// thread, and during a codec or a product on several threads by all of them. It must not leave by longjmp() or an
// exception.
typedef int (*orbitsplit_stop)(void* context);

// Planner: problem.hpp, cost.hpp and planner.hpp say what the numbers mean.

enum { ORBITSPLIT_ORDER_FIXED = 0, ORBITSPLIT_ORDER_FREE = 1 };

// A rate-distortion point of a codec. Seconds are per original byte. `ratio` of 0 means 1.
typedef struct orbitsplit_level {
    const char* name;
    double ratio;
    double encode_s_per_byte;
    double decode_s_per_byte;
} orbitsplit_level;

// Where a micro-batch comes from or its result goes; both arrays have a number for each node.
typedef struct orbitsplit_external_link {
    double bytes;
    const double* bandwidth_bytes_per_s;  // 0: that node cannot be first (last)
    const double* latency_s;
} orbitsplit_external_link;

// Arrays are row-major. Without weight levels (0) arrays over them have one block.
typedef struct orbitsplit_problem_arrays {
    size_t struct_bytes;
    size_t layers;
    size_t nodes;
    size_t levels;
    size_t weight_levels;
    const char* const* layer_names;         // NULL: "layer 0" ...
    const char* const* node_names;          // NULL: "node 0" ...
    const char* const* weight_level_names;  // NULL: "weights 0" ...
    const double* memory_bytes;             // nodes
    const double* headroom_bytes;           // nodes, or NULL: 0
    const uint8_t* half_duplex;             // nodes, 1: cannot compute and transmit at once; or NULL: 0
    const double* layer_memory_bytes;       // weight levels x layers
    const double* layer_time_s;             // weight levels x nodes x layers
    const double* layer_earlier_time_s;     // the same, or NULL: as layer_time_s
    const double* layer_decode_time_s;      // the same, or NULL: none
    const double* cut_bytes;                // layers - 1
    const double* cut_decode_bytes;         // layers - 1, or NULL: none
    const double* bandwidth_bytes_per_s;    // nodes x nodes, 0: no link
    const double* latency_s;                // nodes x nodes
    const orbitsplit_level* level;          // levels
    const double* loss;         // (layers - 1) x levels; infinite: the cut does not have the level
    const double* loss_budget;  // one number, or NULL: no limit
    const double* weight_loss;  // weight levels x layers, or NULL without weight levels
    int64_t micro_batches;      // 0: 1
    int64_t new_tokens;
    int64_t groups;                           // 0: one for each micro-batch
    double tokens_per_step;                   // 0: 1
    const orbitsplit_external_link* ingress;  // NULL: the input is on the first node
    const orbitsplit_external_link* egress;   // NULL: the result stays on the last node
    int32_t order;
    int32_t latency_occupies_link;  // 0 or 1
    size_t pins;                    // pinned layers
    const int32_t* pinned_layers;   // pins
    const int32_t* pinned_nodes;    // pins: the node of each pinned layer
    size_t required;
    const int32_t* required_nodes;  // required: these take part
    size_t forbidden;
    const int32_t* forbidden_nodes;         // forbidden: these do not
    const double* stage_overhead_s;         // weight levels x nodes, of a micro-batch; NULL: 0
    const double* stage_decode_overhead_s;  // the same, of a token step
} orbitsplit_problem_arrays;

typedef struct orbitsplit_problem orbitsplit_problem;

// Copies and validates the arrays, which must be as long as their comments say.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_problem_new(const orbitsplit_problem_arrays* arrays,
                                                          orbitsplit_problem** problem,
                                                          orbitsplit_error* error);
ORBITSPLIT_C_API void orbitsplit_problem_free(orbitsplit_problem* problem);

enum { ORBITSPLIT_NO_LEVEL = -1 };

// Layers [start, stop) on one node; level is that of the cut after them.
typedef struct orbitsplit_stage {
    int32_t node;
    int32_t start;
    int32_t stop;
    int32_t level;         // ORBITSPLIT_NO_LEVEL on the last stage
    int32_t weight_level;  // ORBITSPLIT_NO_LEVEL in a problem without weight levels
} orbitsplit_stage;

enum {
    ORBITSPLIT_LATENCY = 0,
    ORBITSPLIT_THROUGHPUT = 1,
    ORBITSPLIT_TIME_TO_FIRST_TOKEN = 2,
    ORBITSPLIT_TIME_PER_TOKEN = 3
};

// 0 means no limit, or the default of the library. `threads` of 0 means 1; they change the time of a search in free order,
// not its result.
typedef struct orbitsplit_solve_options {
    size_t struct_bytes;
    int32_t objective;
    int32_t max_nodes;
    double gap;
    double time_limit_s;
    uint64_t max_labels;
    uint64_t max_bytes;
    orbitsplit_stop stop;
    void* stop_context;
    const orbitsplit_stage* incumbent;
    size_t incumbent_stages;
    int32_t threads;
    int32_t reserved;
} orbitsplit_solve_options;

enum { ORBITSPLIT_OPTIMAL = 0, ORBITSPLIT_FEASIBLE = 1, ORBITSPLIT_INFEASIBLE = 2, ORBITSPLIT_UNKNOWN = 3 };

typedef struct orbitsplit_solution orbitsplit_solution;

// `options` may be NULL. A problem without a plan is no failure, nor is a search that was stopped: the solution says so.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_solve(const orbitsplit_problem* problem,
                                                    const orbitsplit_solve_options* options,
                                                    orbitsplit_solution** solution, orbitsplit_error* error);
ORBITSPLIT_C_API void orbitsplit_solution_free(orbitsplit_solution* solution);

typedef struct orbitsplit_solution_info {
    size_t struct_bytes;
    int32_t status;
    int32_t reserved;
    double objective_s;  // infinite without a plan
    double lower_bound_s;
    double gap;
    double seconds;
    double loss;
    uint64_t labels;
    const orbitsplit_stage* stages;  // as long as the solution exists, as is the reason
    size_t stage_count;
    const char* reason;  // "" where the plan is optimal
} orbitsplit_solution_info;

// The caller sets info->struct_bytes.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_solution_read(const orbitsplit_solution* solution,
                                                            orbitsplit_solution_info* info,
                                                            orbitsplit_error* error);

typedef struct orbitsplit_evaluation orbitsplit_evaluation;

// Scores a plan; one that violates limits is scored too.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_evaluate(const orbitsplit_problem* problem,
                                                       const orbitsplit_stage* stages, size_t stage_count,
                                                       orbitsplit_evaluation** evaluation,
                                                       orbitsplit_error* error);
ORBITSPLIT_C_API void orbitsplit_evaluation_free(orbitsplit_evaluation* evaluation);

// A number for each stage, or for each link between two stages.
typedef struct orbitsplit_doubles {
    const double* numbers;
    size_t count;
} orbitsplit_doubles;

typedef struct orbitsplit_evaluation_info {
    size_t struct_bytes;
    double objective_s;
    double prefill_s;
    double token_step_s;
    double round_trip_s;
    double tokens_per_step;
    double bottleneck_s;
    double return_s;
    double loss;
    double weight_loss;
    double latency_s;
    double ingress_s;
    double egress_s;
    orbitsplit_doubles stage_s;  // as long as the evaluation exists, as is all that follows
    orbitsplit_doubles earlier_stage_s;
    orbitsplit_doubles link_s;
    orbitsplit_doubles decode_stage_s;
    orbitsplit_doubles decode_link_s;
    orbitsplit_doubles stage_memory_bytes;
    const char* const* violations;  // a sentence for each violated limit; none: the plan is feasible
    size_t violation_count;
} orbitsplit_evaluation_info;

// The caller sets info->struct_bytes.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_evaluation_read(const orbitsplit_evaluation* evaluation,
                                                              orbitsplit_evaluation_info* info,
                                                              orbitsplit_error* error);

// Codecs: codec.hpp and calibrated.hpp say what they do.

enum { ORBITSPLIT_FLOAT32 = 0, ORBITSPLIT_FLOAT16 = 1, ORBITSPLIT_BFLOAT16 = 2 };

enum {
    ORBITSPLIT_RAW = 0,
    ORBITSPLIT_BF16 = 1,
    ORBITSPLIT_INT8 = 2,
    ORBITSPLIT_INT4 = 3,
    ORBITSPLIT_TOPK = 4,
    ORBITSPLIT_LOSSLESS_BF16 = 5,
    ORBITSPLIT_CALIBRATED = 6
};

enum { ORBITSPLIT_MAX_RANK = 8 };

// The dtype and the shape of a dense row-major array; extents beyond the rank are ignored.
typedef struct orbitsplit_array_type {
    int32_t dtype;
    int32_t rank;
    int64_t shape[ORBITSPLIT_MAX_RANK];
} orbitsplit_array_type;

typedef struct orbitsplit_codec orbitsplit_codec;

// "raw", "bf16", "lossless_bf16", "int8", "int8:128", "int4", "int4:32", "topk" or "topk:0.1".
ORBITSPLIT_C_API orbitsplit_status orbitsplit_codec_parse(const char* text, orbitsplit_codec** codec,
                                                          orbitsplit_error* error);
// What uses the codec may exist longer.
ORBITSPLIT_C_API void orbitsplit_codec_free(orbitsplit_codec* codec);

// How wide the last axis must be: the channels of a calibrated codec; 0 for a fixed one, which takes any, and for NULL.
ORBITSPLIT_C_API int64_t orbitsplit_codec_width(const orbitsplit_codec* codec);

// How a call runs: `threads` of 0 means 1. NULL: one thread that nothing stops.
typedef struct orbitsplit_execution {
    size_t struct_bytes;
    int32_t threads;
    int32_t reserved;
    orbitsplit_stop stop;
    void* stop_context;
} orbitsplit_execution;

// The size of a frame in bytes; exact, or an upper bound with topk, lossless_bf16 and calibrated codecs.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_frame_bytes(const orbitsplit_codec* codec,
                                                          const orbitsplit_array_type* type,
                                                          size_t* frame_bytes, orbitsplit_error* error);

// Encodes `data_bytes` bytes, the array, into `frame`, which has at least orbitsplit_frame_bytes() bytes.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_compress(const orbitsplit_codec* codec,
                                                       const orbitsplit_array_type* type, const void* data,
                                                       size_t data_bytes,
                                                       const orbitsplit_execution* execution, void* frame,
                                                       size_t frame_capacity, size_t* frame_bytes,
                                                       orbitsplit_error* error);

// What the header of a frame says. `codebook` of 0: none is needed.
typedef struct orbitsplit_frame_info {
    size_t struct_bytes;
    orbitsplit_array_type type;
    int32_t codec;
    uint32_t parameter;
    uint64_t data_bytes;  // of the decoded array
    uint64_t codebook;
    uint16_t cut;
    uint16_t level;
    uint32_t reserved;
} orbitsplit_frame_info;

// Reads the header of untrusted bytes and does not verify the checksum. ORBITSPLIT_CORRUPT_FRAME also for an array of more
// than `max_data_bytes`, where 0 means 16 MiB and 8192 bytes for each byte of the frame, at most 1 GiB. The caller sets
// info->struct_bytes.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_inspect(const void* frame, size_t frame_bytes,
                                                      uint64_t max_data_bytes, orbitsplit_frame_info* info,
                                                      orbitsplit_error* error);

// Decodes untrusted bytes into `data`, which has exactly the array's bytes. `codec` is for calibrated frames; NULL: none.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_decompress(const orbitsplit_codec* codec, const void* frame,
                                                         size_t frame_bytes,
                                                         const orbitsplit_execution* execution, void* data,
                                                         size_t data_bytes, orbitsplit_error* error);

// Codecs for many arrays of one dtype and shape (encoder.hpp): calls allocate nothing. For one thread at a time: during
// another call ORBITSPLIT_BUSY, and nothing else happens.
typedef struct orbitsplit_encoder orbitsplit_encoder;

// `threads` of 0 means 1.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_encoder_new(const orbitsplit_codec* codec,
                                                          const orbitsplit_array_type* type, int32_t threads,
                                                          orbitsplit_encoder** encoder,
                                                          orbitsplit_error* error);
ORBITSPLIT_C_API void orbitsplit_encoder_free(orbitsplit_encoder* encoder);
ORBITSPLIT_C_API orbitsplit_status orbitsplit_encode(orbitsplit_encoder* encoder, const void* data,
                                                     size_t data_bytes, void* frame, size_t frame_capacity,
                                                     size_t* frame_bytes, orbitsplit_error* error);

typedef struct orbitsplit_decoder orbitsplit_decoder;

// Decodes frames of all fixed codecs and of these calibrated ones, of which there may be none.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_decoder_new(const orbitsplit_codec* const* codecs,
                                                          size_t codec_count,
                                                          const orbitsplit_array_type* type, int32_t threads,
                                                          orbitsplit_decoder** decoder,
                                                          orbitsplit_error* error);
ORBITSPLIT_C_API void orbitsplit_decoder_free(orbitsplit_decoder* decoder);
ORBITSPLIT_C_API orbitsplit_status orbitsplit_decode(orbitsplit_decoder* decoder, const void* frame,
                                                     size_t frame_bytes, void* data, size_t data_bytes,
                                                     orbitsplit_error* error);

// Codebooks: files that `orbitsplit calibrate` and Codebook.save() write (.safetensors).

typedef struct orbitsplit_codebook orbitsplit_codebook;

// Untrusted bytes are a codebook, or ORBITSPLIT_INVALID_FILE. A file is held in memory as a whole.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_codebook_open(const char* path, orbitsplit_codebook** codebook,
                                                            orbitsplit_error* error);
ORBITSPLIT_C_API orbitsplit_status orbitsplit_codebook_parse(const void* bytes, size_t size,
                                                             orbitsplit_codebook** codebook,
                                                             orbitsplit_error* error);
ORBITSPLIT_C_API void orbitsplit_codebook_free(orbitsplit_codebook* codebook);

// The identity that frames name; 0 for NULL, as are the counts.
ORBITSPLIT_C_API uint64_t orbitsplit_codebook_id(const orbitsplit_codebook* codebook);
// Calibrated cuts, in order: cut c lies after c layers. -1 for an index that does not exist.
ORBITSPLIT_C_API size_t orbitsplit_codebook_cut_count(const orbitsplit_codebook* codebook);
ORBITSPLIT_C_API int32_t orbitsplit_codebook_cut(const orbitsplit_codebook* codebook, size_t index);
// The levels of a cut, best quality first; 0 for a cut that was not calibrated.
ORBITSPLIT_C_API size_t orbitsplit_codebook_level_count(const orbitsplit_codebook* codebook, int32_t cut);

typedef struct orbitsplit_level_info {
    size_t struct_bytes;
    const char* name;  // as long as the codebook exists
    double bits_per_element;
    double loss;
    double loss_error;
    double encode_s_per_byte;
    double decode_s_per_byte;
} orbitsplit_level_info;

// The caller sets info->struct_bytes.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_codebook_level(const orbitsplit_codebook* codebook, int32_t cut,
                                                             int32_t level, orbitsplit_level_info* info,
                                                             orbitsplit_error* error);
// The codec of a level, calibrated or fixed; the codebook may be freed before it.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_codebook_codec(const orbitsplit_codebook* codebook, int32_t cut,
                                                             int32_t level, orbitsplit_codec** codec,
                                                             orbitsplit_error* error);

// Quantised weights: weights.hpp says what they are.

enum { ORBITSPLIT_WEIGHT_INT8 = 0, ORBITSPLIT_WEIGHT_INT4 = 1, ORBITSPLIT_WEIGHT_INT5 = 2 };

// A matrix in memory of the caller; `columns` is a multiple of 32.
typedef struct orbitsplit_weight_matrix {
    int32_t format;
    int32_t reserved;
    int64_t rows;
    int64_t columns;
    const void* data;
    size_t data_bytes;
} orbitsplit_weight_matrix;

ORBITSPLIT_C_API orbitsplit_status orbitsplit_quantized_bytes(int32_t format, int64_t rows, int64_t columns,
                                                              size_t* bytes, orbitsplit_error* error);
// `importance` has a number for each column, or is NULL.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_quantize(int32_t format, int64_t rows, int64_t columns,
                                                       const float* values, const float* importance,
                                                       const orbitsplit_execution* execution, void* data,
                                                       size_t data_bytes, orbitsplit_error* error);
// The values of `count` rows, the first of which is `first`.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_dequantize(const orbitsplit_weight_matrix* matrix,
                                                         int64_t first, int64_t count,
                                                         const orbitsplit_execution* execution, float* values,
                                                         orbitsplit_error* error);
// Bytes of working memory that a product with so many rows of x needs.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_product_scratch_bytes(int64_t inputs, int64_t columns,
                                                                    size_t* bytes, orbitsplit_error* error);
// y[inputs, rows] = x[inputs, columns] W^T. With one thread nothing is allocated.
ORBITSPLIT_C_API orbitsplit_status orbitsplit_multiply(const orbitsplit_weight_matrix* matrix, const float* x,
                                                       int64_t inputs, const orbitsplit_execution* execution,
                                                       void* scratch, size_t scratch_bytes, float* y,
                                                       orbitsplit_error* error);

#ifdef __cplusplus
}
#endif

#endif
