import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.codelibs.opensearch.runner.node.OpenSearchRunnerNode;
import org.opensearch.analysis.common.CommonAnalysisModulePlugin;
import org.opensearch.common.settings.Settings;
import org.opensearch.http.HttpServerTransport;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.transport.Netty4ModulePlugin;

/** Starts one search node from `name=value` settings, writes its HTTP port to the file named first. */
public final class Launcher {
    public static void main(String[] args) throws Exception {
        Settings.Builder settings = Settings.builder();
        for (int i = 1; i < args.length; i++) {
            String[] pair = args[i].split("=", 2);
            settings.put(pair[0], pair[1]);
        }
        var environment = InternalSettingsPreparer.prepareEnvironment(settings.build(), Map.of(), null, () -> "node");
        var plugins = List.of(Netty4ModulePlugin.class, CommonAnalysisModulePlugin.class);
        try (var node = new OpenSearchRunnerNode(environment, List.copyOf(plugins))) {
            node.start();
            var address = node.injector().getInstance(HttpServerTransport.class).boundAddress().publishAddress();
            Path port = Path.of(args[0]);
            Path partial = Path.of(args[0] + ".part");
            Files.writeString(partial, Integer.toString(address.getPort()));
            Files.move(partial, port);
            // Standard input ends when the process that started this one ends, however it ends.
            while (System.in.read() >= 0) {}
        }
    }
}
