import com.hivemq.embedded.EmbeddedHiveMQ;
import java.nio.file.Files;
import java.nio.file.Path;

/** HiveMain DATA_DIR: HiveMQ CE with the folders conf, data, extensions below DATA_DIR, until SIGTERM. */
public class HiveMain {
    public static void main(String[] args) throws Exception {
        Path base = Path.of(args[0]);
        EmbeddedHiveMQ hive = EmbeddedHiveMQ.builder()
            .withConfigurationFolder(Files.createDirectories(base.resolve("conf")))
            .withDataFolder(Files.createDirectories(base.resolve("data")))
            .withExtensionsFolder(Files.createDirectories(base.resolve("extensions")))
            .build();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                hive.close();
            } catch (Exception e) {
                e.printStackTrace();
            }
        }));
        hive.start().join();
        System.out.println("READY");
        Thread.currentThread().join();
    }
}
